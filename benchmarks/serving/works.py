"""The things that are measured. Each returns plain data for the result file."""

from __future__ import annotations

import asyncio
import tempfile
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from itertools import product
from pathlib import Path
from statistics import median
from typing import Any

import httpx2 as httpx
import numpy as np
import torch

from benchmarks.measure import apart
from benchmarks.serving import servers
from benchmarks.serving.client import Seen, ask, ask_all, post, session
from benchmarks.serving.options import Options, Work
from benchmarks.serving.peers import engine_seconds, llama_cpp_seconds, transformers_seconds
from benchmarks.serving.texts import Message, conversation, prompts
from steerlm.checkpoints.gguf import export_gguf
from steerlm.devices import pick_precision
from steerlm.engines.openvino import CHUNK
from steerlm.engines.openvino_network import computes_bfloat16
from steerlm.errors import EngineError
from steerlm.models.base import load_tokenizer

Values = dict[str, int]


class Bench:
    """One run of the benchmark."""

    def __init__(self, options: Options, folder: Path, say: Callable[[str], None]) -> None:
        self.options = options
        self.folder = folder
        self.say = say
        if "steerlm-bf16" in options.contenders and not computes_bfloat16():
            say("steerlm-bf16 is left out: OpenVINO does not compute in bfloat16 on this CPU")
            possible = tuple(name for name in options.contenders if name != "steerlm-bf16")
            self.options = options.model_copy(update={"contenders": possible})
        self.tokenizer = load_tokenizer(str(options.model))

    def measure(self, work: Work) -> dict[str, Any]:
        """Measure one work item."""
        return {
            "throughput": self.throughput,
            "overhead": self.overhead,
            "sweep": self.sweep,
            "second-turn": self.second_turn,
            "load": self.load,
        }[work]()

    def throughput(self) -> dict[str, Any]:
        """Tokens a second at each number of clients, for every contender."""
        o = self.options
        groups = [self._rounds(size) for size in o.batches]
        if "llama-cpp" in o.contenders:
            self._llama_cpp([[[0]]])  # whether it runs here, before the others take their time
        record: dict[str, Any] = {}
        for name, url_of in self._servers():
            with url_of() as server:
                rates = {}
                for size, rounds in zip(o.batches, groups, strict=True):
                    rates[size] = self._served(server.url, rounds)
                record[name] = {"tokens_per_second": rates, "startup_seconds": server.startup_seconds}
            self.say(f"throughput, {name}: {_shown(rates)}")
        flat = [ids for rounds in groups for ids in self._ids_of(rounds)]
        offline = self._transformers()
        if "llama-cpp" in o.contenders:
            offline["llama-cpp"] = self._llama_cpp
        for name, seconds_of in offline.items():
            seconds = seconds_of(flat)
            chunks = [seconds[i * (o.repeat + 1) : (i + 1) * (o.repeat + 1)] for i in range(len(o.batches))]
            rates = {size: self._rate(size, chunk) for size, chunk in zip(o.batches, chunks, strict=True)}
            record[name] = {"tokens_per_second": rates}
            self.say(f"throughput, {name}: {_shown(rates)}")
        if "steerlm" in record:
            ours = record["steerlm"]["tokens_per_second"]
            for item in record.values():
                item["ours_times"] = {size: ours[size] / value for size, value in item["tokens_per_second"].items()}
        return record

    def overhead(self) -> dict[str, Any]:
        """What our server costs of its engine's tokens with the most clients. They are measured in turn, each several
        times, as the speed of a machine changes by more than that within minutes.
        """
        o, size = self.options, max(self.options.batches)
        rounds = self._rounds(size)
        rates: dict[str, list[float]] = {"server": [], "engine": []}
        for _ in range(o.repeat):
            with self._ours()() as server:
                rates["server"].append(self._served(server.url, rounds))
            seconds = apart(o.threads, engine_seconds, o.model, o.engine, self._ids_of(rounds), o.tokens)
            rates["engine"].append(self._rate(size, seconds))
        cost = 1 - median(rates["server"]) / median(rates["engine"])
        self.say(f"overhead: {100 * cost:.1f}%, {rates}")
        return {"clients": size, "tokens_per_second": rates, "overhead": cost}

    def _rounds(self, size: int) -> list[list[str]]:
        """The prompts of each round: others each time, so that no cache knows them."""
        return [prompts(size, skip=100 * number) for number in range(self.options.repeat + 1)]

    def _ids_of(self, rounds: Sequence[Sequence[str]]) -> list[list[list[int]]]:
        return [[self._ids(_ask(text)) for text in texts] for texts in rounds]

    def _served(self, url: str, rounds: Sequence[Sequence[str]]) -> float:
        """Tokens a second of a server."""
        bodies = [[self._body(_ask(text)) for text in texts] for texts in rounds]
        return self._rate(len(rounds[0]), [asyncio.run(self._round(url, items)) for items in bodies])

    def _rate(self, size: int, seconds: Sequence[float]) -> float:
        """Tokens a second of rounds of so many answers, of which the first does not count."""
        return size * self.options.tokens / median(seconds[1:])

    def sweep(self) -> dict[str, Any]:
        """Seconds to answer one conversation under many settings."""
        o = self.options
        settings = [{"verbosity": a, "complexity": b} for a, b in product(range(5), range(5))][: o.settings]
        rounds = [conversation(o.sweep_tokens, self._count, topic) for topic in range(o.repeat + 1)]
        record: dict[str, Any] = {}

        async def at_once(client: httpx.AsyncClient, messages: list[Message]) -> float:
            body = {"messages": messages, "settings": settings, "max_tokens": o.tokens, "min_tokens": o.tokens}
            seconds, answer = await post(client, "/v1/steer/sweep", body)
            if len(answer["answers"]) != len(settings):
                raise EngineError(f"the sweep gave {len(answer['answers'])} answers instead of {len(settings)}")
            return seconds

        async def one_by_one(client: httpx.AsyncClient, messages: list[Message]) -> float:
            return (await ask_all(client, [self._body(messages, values) for values in settings]))[0]

        for name, url_of in self._servers():
            with url_of() as server:
                how = at_once if name.startswith("steerlm") else one_by_one
                record[name] = {"seconds": median([asyncio.run(_with(server.url, how, m)) for m in rounds][1:])}
            self.say(f"sweep, {name}: {record[name]['seconds']:.1f} s")
        groups = [[self._ids(messages, values) for values in settings] for messages in rounds]
        for name, seconds_of in self._transformers().items():
            record[name] = {"seconds": median(seconds_of(groups)[1:])}
            self.say(f"sweep, {name}: {record[name]['seconds']:.1f} s")
        if "steerlm" in record:
            for item in record.values():
                item["ours_times"] = item["seconds"] / record["steerlm"]["seconds"]
        return {**record, "prompt_tokens": [len(group[0]) for group in groups], "settings": len(settings)}

    def second_turn(self) -> dict[str, Any]:
        """Time to the first text of a long conversation that is new to our server, and of its next turn."""
        o = self.options

        async def both(client: httpx.AsyncClient, messages: list[Message]) -> tuple[Seen, Seen]:
            new = await ask(client, self._body(messages))
            _, answer = await post(client, "/v1/chat/completions", self._body(messages))
            said = {"role": "assistant", "content": answer["choices"][0]["message"]["content"]}
            return new, await ask(client, self._body([*messages, said, *_ask("Please go on.")]))

        with self._ours()() as server:
            rounds = [conversation(o.turn_tokens, self._count, topic) for topic in range(o.repeat + 1)]
            seen = [asyncio.run(_with(server.url, both, messages)) for messages in rounds][1:]
        new, again = (median(pair[i].first_seconds for pair in seen) for i in (0, 1))
        self.say(f"second turn: {new:.3f} s new, {again:.3f} s with the cache")
        return {
            "new_first_seconds": new,
            "second_turn_first_seconds": again,
            "times": new / again,
            "prompt_tokens": [self._count(messages) for messages in rounds[1:]],
            "cached_tokens": [pair[1].cached for pair in seen],
        }

    def load(self) -> dict[str, Any]:
        """Prompts of every length, then many clients for a while, twice, then far more requests at once than the queue
        takes. The cache of keys and values is so small that the prompts fill it, and OpenVINO keeps something for each
        number of rows that it once computed: from then on memory is to stay as it is, but for what the last requests
        take all at once.
        """
        o = self.options
        with self._ours("--cache-gb", str(o.load_cache_gb))() as server:
            asyncio.run(self._round(server.url, [self._body(_ask(text)) for text in prompts(o.clients)]))
            before = server.resident_mb()
            asyncio.run(self._every_length(server.url))
            lengths = server.resident_mb()
            seen, seconds = asyncio.run(self._clients(server.url, 0))
            steady = server.resident_mb()
            again, _ = asyncio.run(self._clients(server.url, 1))
            later = server.resident_mb()
            flood = asyncio.run(self._flood(server.url))
            after = server.resident_mb()
            _, last = asyncio.run(
                _with(server.url, lambda client, body: ask_all(client, [body]), self._body(_ask("Hi")))
            )
        done = [item for item in seen if item.status == 200]
        record = {
            "clients": o.clients,
            "seconds": seconds,
            "statuses": dict(Counter(str(item.status) for item in seen + again)),
            "tokens_per_second": sum(item.tokens for item in done) / seconds,
            "seconds_p50_p95": [float(np.quantile([item.seconds for item in done], q)) for q in (0.5, 0.95)],
            "first_seconds_p50_p95": [
                float(np.quantile([item.first_seconds for item in done], q)) for q in (0.5, 0.95)
            ],
            "flood_statuses": dict(Counter(str(item.status) for item in flood)),
            "answers_after_flood": last[0].status,
            "resident_mb": {
                "before": before,
                "after_every_length": lengths,
                "after_load": steady,
                "after_second_load": later,
                "after_flood": after,
            },
        }
        self.say(f"load: {record}")
        return record

    async def _every_length(self, url: str) -> None:
        """One after another, prompts of each length that our engine computes at once, none of which another begins."""
        async with session(url) as client:
            for length in range(1, CHUNK + 1):
                body = {"model": str(self.options.model), "prompt": [100 + length] * length, "max_tokens": 1}
                await post(client, "/v1/completions", body)

    async def _clients(self, url: str, part: int) -> tuple[list[Seen], float]:
        o = self.options
        began = time.perf_counter()
        seen: list[Seen] = []

        async def client_loop(client: httpx.AsyncClient, number: int) -> None:
            turn = 0
            while time.perf_counter() - began < o.seconds:
                text = prompts(1, skip=1000 * (part * o.clients + number + 1) + turn)[0]
                seen.append(await ask(client, self._body(_ask(text))))
                turn += 1

        async with session(url) as client:
            await asyncio.gather(*(client_loop(client, number) for number in range(o.clients)))
        return seen, time.perf_counter() - began

    async def _flood(self, url: str) -> list[Seen]:
        async with session(url) as client:
            count = self.options.flood * self.options.waiting
            return (await ask_all(client, [self._body(_ask(text)) for text in prompts(count)]))[1]

    async def _round(self, url: str, bodies: Sequence[dict[str, Any]]) -> float:
        async with session(url) as client:
            seconds, seen = await ask_all(client, bodies)
        bad = [item for item in seen if item.status != 200 or item.tokens != self.options.tokens]
        if bad:
            raise EngineError(f"{len(bad)} of {len(seen)} answers are not whole, such as {bad[0]}")
        return seconds

    def _servers(self) -> Iterator[tuple[str, Callable[[], Any]]]:
        o = self.options
        if "steerlm" in o.contenders:
            yield "steerlm", self._ours()
        for precision in ("int8", "bf16"):
            if f"steerlm-{precision}" in o.contenders:
                yield f"steerlm-{precision}", self._ours("--precision", precision)
        if "vllm" in o.contenders:
            if o.vllm_python is None:
                raise EngineError("name the interpreter of an environment with vLLM: --vllm-python")
            yield "vllm", self._serving(servers.vllm(o.vllm_python, o.model, 4096))

    def _ours(self, *flags: str) -> Callable[[], Any]:
        o = self.options
        return self._serving(servers.ours(o.model, o.engine, "--waiting", str(o.waiting), *flags))

    def _serving(self, command: list[str]) -> Callable[[], Any]:
        @contextmanager
        def started() -> Iterator[servers.Server]:
            with (
                tempfile.TemporaryDirectory(dir=self.folder) as logs,
                servers.serving(command, Path(logs) / "log", self.options.threads) as server,
            ):
                yield server

        return started

    def _transformers(self) -> dict[str, Callable[[Any], list[float]]]:
        """Functions from groups of prompts to seconds, each in a process of its own, where they are asked for; in
        bfloat16 where the CPU multiplies it.
        """
        if "transformers" not in self.options.contenders:
            return {}
        kinds = {"transformers": "float32"}
        if pick_precision("auto", torch.device("cpu")) == torch.bfloat16:
            kinds["transformers-bf16"] = "bfloat16"
        return {name: partial(self._generate, dtype) for name, dtype in kinds.items()}

    def _generate(self, dtype: str, groups: Any) -> list[float]:
        o = self.options
        return apart(o.threads, transformers_seconds, o.model, dtype, groups, o.tokens)

    def _llama_cpp(self, groups: Any) -> list[float]:
        o = self.options
        if o.llama_cpp_python is None:
            raise EngineError("name the interpreter of an environment with llama-cpp-python: --llama-cpp-python")
        gguf = self.folder / "q8_0.gguf"
        if not gguf.exists():
            export_gguf(o.model, gguf, "q8_0")
        return llama_cpp_seconds(o.llama_cpp_python, gguf, groups, o.tokens, o.threads)

    def _body(self, messages: list[Message], values: Values | None = None) -> dict[str, Any]:
        """A request that both our server and vLLM's understand, for exactly the tokens asked for."""
        body = {"model": str(self.options.model), "messages": messages, "temperature": 0}
        if values:
            body["chat_template_kwargs"] = {"attributes": values}
        return {**body, "max_tokens": self.options.tokens, "min_tokens": self.options.tokens}

    def _ids(self, messages: list[Message], values: Values | None = None) -> list[int]:
        ids = self.tokenizer.apply_chat_template(
            messages, attributes=values or {}, add_generation_prompt=True, return_dict=False
        )
        return list(ids)

    def _count(self, messages: list[Message]) -> int:
        return len(self._ids(messages))


async def _with(url: str, how: Callable[[httpx.AsyncClient, Any], Awaitable[Any]], item: Any) -> Any:
    async with session(url) as client:
        return await how(client, item)


def _ask(text: str) -> list[Message]:
    return [{"role": "user", "content": text}]


def _shown(rates: dict[int, float]) -> str:
    return ", ".join(f"{size}: {value:.0f} tokens/s" for size, value in rates.items())
