"""Generation with OpenVINO on the CPU: prompts in pieces beside the answers under way, memory in shared blocks.

Every step computes one token of each answer under way and, as far as its budget goes, tokens of prompts, all in one
pass: rows stand one after another, without padding.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from steerlm.engines.base import Request
from steerlm.engines.blocks import BLOCK, Pool, Table, blocks_for
from steerlm.engines.choosing import Chooser, Scores, prompt_logprobs
from steerlm.engines.make import CACHE_BYTES, MAX_BATCH, Precision
from steerlm.engines.openvino_network import PagedNetwork, Progress, Row, prepared, require_computable
from steerlm.engines.prefixes import Known, Part, in_turn, parts_of
from steerlm.engines.runner import Runner, Token
from steerlm.errors import ConfigError
from steerlm.models.prompting import Prompting, load_prompting

CHUNK = 256
"""Most tokens of a step in f32, where nothing else is asked for."""


@dataclass(eq=False, slots=True)
class _Answer:
    """A request being answered. `parts` are its rows: prompts at first, which grow by what is chosen."""

    key: int
    parts: list[Part[Table]]
    chooser: Chooser
    need: int
    """Blocks that it may come to fill."""
    scores: list[Scores | None]

    @property
    def begun(self) -> bool:
        return bool(self.chooser.made)

    @property
    def ready(self) -> bool:
        """Whether its next token can be chosen."""
        return all(row is not None for row in self.scores)


class OpenVinoCore:
    """Continuous batching over a paged network.

    A request begins when the blocks that it may come to need are there, so that none must be put off later. Blocks
    that nobody computes with keep what they hold until they are needed.
    """

    def __init__(self, network: PagedNetwork, stop_ids: Sequence[int], max_batch: int, chunk: int) -> None:
        if network.blocks < 2:
            raise ConfigError(
                f"a cache of less than {2 * BLOCK} tokens is too small to answer anything; make it larger"
            )
        # One block more than tokens fill is what `_need` counts.
        self.context = min(network.context, (network.blocks - 1) * BLOCK)
        self.guided_context = min(network.context, (network.blocks // 2 - 1) * BLOCK)
        self.vocabulary = network.vocabulary
        self._network = network
        self._stop_ids = stop_ids
        self._max_batch = max_batch
        self._chunk = chunk
        self._pool = Pool(network.blocks)
        self._known: Known[Table] = Known()
        self._answers: dict[int, _Answer] = {}
        self._waiting: dict[int, _Answer] = {}

    def check(self, request: Request) -> None:
        tokens = max(map(len, request.prompts)) + request.sampling.max_tokens
        if (need := _need(request)) > self._pool.size:
            raise ConfigError(
                f"{tokens} tokens of prompt and answer, computed twice for guidance, need {need} blocks of memory, and "
                f"there are {self._pool.size}; shorten the conversation, lower max_tokens or leave guidance out"
            )

    def add(self, requests: Sequence[tuple[int, Request]]) -> None:
        parts: list[list[Part[Table]]] = parts_of([request for _, request in requests])
        for (key, request), own in zip(requests, parts, strict=True):
            self._waiting[key] = _Answer(key, own, Chooser(request, self._stop_ids), _need(request), [None] * len(own))

    def drop(self, key: int, keep: bool = True) -> None:
        self._waiting.pop(key, None)
        answer = self._answers.pop(key, None)
        if answer is None or not keep:
            return
        for part in answer.parts:
            ids = [*part.ids, *answer.chooser.made][: part.done]
            if part.states is not None and ids:
                self._keep(ids, part.salt, part.states)

    def _keep(self, ids: Sequence[int], salt: str, table: Table) -> None:
        """Let later prompts that begin with `ids` go on from them."""
        if not self._known.holds(ids, salt):
            self._known.put(ids, salt, table)

    def step(self) -> list[Token]:
        self._admit()
        work: dict[Part[Table], Row] = {}
        for answer in self._answers.values():
            if answer.begun:
                for part in answer.parts:
                    work[part] = self._row(part, answer.chooser.made[-1:], wanted=1)
        room = max(self._chunk - len(work), 1)
        leaves = {part for answer in self._answers.values() for part in answer.parts}
        for part in in_turn(self._unfinished(), self._known):
            if not part.done:
                self._start(part)
            ids = part.ids[part.done : part.done + room]
            is_last = part in leaves and part.done + len(ids) == len(part.ids)
            work[part] = self._row(part, ids, wanted=is_last if part.likeliest is None else len(ids))
            room -= len(ids)
            if not room:
                break
        return self._compute(work) if work else []

    def close(self) -> None:
        for held in (self._answers, self._waiting):
            held.clear()
        self._known = Known()
        del self._network

    def _admit(self) -> None:
        """Let requests begin, first come first served, as far as rows and blocks go."""
        rows = sum(len(answer.parts) for answer in self._answers.values())
        used = sum(answer.need for answer in self._answers.values()) + (self._pinned() if self._waiting else 0)
        for answer in list(self._waiting.values()):
            rows, used = rows + len(answer.parts), used + answer.need
            if self._answers and (rows > self._max_batch or used > self._pool.size):
                break
            self._answers[answer.key] = self._waiting.pop(answer.key)

    def _pinned(self) -> int:
        """Blocks of shared beginnings that requests wait to go on from."""
        stems = _stems(self._waiting.values())
        return len({block for stem in stems if stem.states is not None for block in stem.states.blocks})

    def _unfinished(self) -> list[Part[Table]]:
        """The parts of prompts that can be computed now, each once."""
        waiting = (part for answer in self._answers.values() if not answer.begun for part in answer.parts)
        return list(dict.fromkeys(part.next() for part in waiting if not part.finished))

    def _start(self, part: Part[Table]) -> None:
        """Go on from what is known: whole blocks are shared, the rest of the last one is copied."""
        part.start(self._known)
        source, part.states = part.states, Table(self._pool)
        if source is None:
            return
        part.states = source.fork(part.done)
        if part.done % BLOCK:
            # Only what is copied is held: what else the source has may be what makes room for the copy.
            last = source.hold(part.done // BLOCK)
            del source
            self._room(part.states, part.done)
            self._network.copy(last.blocks[0], part.states.blocks[-1])

    def _row(self, part: Part[Table], ids: Sequence[int], wanted: int) -> Row:
        assert part.states is not None
        past = part.done
        self._room(part.states, past + len(ids))
        part.done += len(ids)
        return Row(ids, past, part.states.blocks, wanted)

    def _room(self, table: Table, tokens: int) -> None:
        """Give a table its blocks: those of what has ended, then those of beginnings that nobody goes on from yet.

        What is held besides is at most what the requests that have begun may need, so that there are always enough.
        """
        while self._pool.free < table.missing(tokens):
            if len(self._known):
                self._known.pop()
            elif (stem := self._idle_stem()) is not None:
                stem.forget()
            else:
                break
        table.grow(tokens)

    def _idle_stem(self) -> Part[Table] | None:
        """A shared beginning that was computed and that only waiting requests will go on from."""
        used = _stems(self._answers.values())
        idle = (stem for stem in _stems(self._waiting.values()) if stem.states is not None and stem not in used)
        return next(idle, None)

    def _compute(self, work: dict[Part[Table], Row]) -> list[Token]:
        scores = self._network.run(list(work.values()))
        found: dict[Part[Table], Scores] = {}
        for part, row in work.items():
            own, scores = scores[: row.wanted], scores[row.wanted :]
            if part.likeliest is not None:
                part.scored += prompt_logprobs(own, part.ids[row.past + 1 :], part.likeliest)
            if row.wanted and part.done >= len(part.ids):
                found[part] = own[-1]
            if part.finished and part.states is not None:
                self._keep(part.ids, part.salt, part.states)
        for answer in self._answers.values():
            answer.scores = [found.get(part, old) for part, old in zip(answer.parts, answer.scores, strict=True)]
            if not answer.ready:  # one of two rows, in memory that the next step writes to
                answer.scores = [None if row is None else row.copy() for row in answer.scores]
        return [self._chosen(answer) for answer in self._answers.values() if answer.ready]

    def _chosen(self, answer: _Answer) -> Token:
        token, logprob = answer.chooser.choose([row for row in answer.scores if row is not None])
        answer.scores = [None] * len(answer.parts)
        prompt = tuple(answer.parts[0].scored) if len(answer.chooser.made) == 1 else ()
        return Token(answer.key, token, logprob, answer.parts[0].cached, prompt)


def _stems(answers: Iterable[_Answer]) -> list[Part[Table]]:
    """The shared beginnings that the prompts of requests are still to go on from."""
    found: dict[Part[Table], None] = {}
    for answer in answers:
        for part in answer.parts:
            stem = part.parent
            while stem is not None and stem not in found:
                found[stem] = None
                stem = stem.parent
    return list(found)


def _need(request: Request) -> int:
    """Blocks that a request may come to fill, with one for the copy of a block that it shares in part."""
    return sum(blocks_for(len(ids) + request.sampling.max_tokens) + 1 for ids in request.prompts)


class OpenVinoEngine(Runner):
    """See `steerlm.engines.base.Engine`.

    max_batch     rows computed together; further requests wait
    cache_bytes   most memory for keys and values, which is also what remembers earlier conversations; less than the
                  model's context takes makes `context` smaller
    chunk         most tokens of a step, of which answers under way take one each and prompts the rest; by default what
                  takes about a third of a second with a small model
    precision     f32, or int8 or bf16, which are faster on CPUs made for them; see `Precision`

    Raises `ConfigError` for a precision that this CPU does not compute in, `ModelError` for a model that OpenVINO
    cannot read.
    """

    def __init__(
        self,
        directory: str | Path,
        prompting: Prompting | None = None,
        max_batch: int = MAX_BATCH,
        cache_bytes: int = CACHE_BYTES,
        chunk: int | None = None,
        precision: Precision = "f32",
        progress: Progress | None = None,
    ) -> None:
        require_computable(precision)
        directory = Path(directory)
        renderer = (prompting or load_prompting(directory)).renderer
        network = PagedNetwork(prepared(directory, precision, progress), cache_bytes, precision)
        self.model_context = network.context
        size = chunk or (CHUNK if precision == "f32" else 2 * CHUNK)
        core = OpenVinoCore(network, renderer.stop_ids, max_batch, size)
        super().__init__(core, renderer)
