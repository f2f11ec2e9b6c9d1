"""Prompt formats, and the one renderer that turns conversations into tokens for training, scoring and serving.

A dialect is a handful of strings. The renderer and the chat template it writes are both made from them, so that
`tokenizer.apply_chat_template(messages, attributes=...)` yields exactly the renderer's tokens.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from steerlm.attributes import Schema
from steerlm.chat_template import Task, chat_template
from steerlm.conversation import Conversation, Message, Role
from steerlm.errors import ConfigError
from steerlm.pieces import PieceEncoder
from steerlm.tokens import Segment, Span, TokenRole, TokenTree

if TYPE_CHECKING:  # it takes seconds to load, and reading or checking data needs no tokenizer
    from transformers import PreTrainedTokenizerBase

Labels = Mapping[str, float]


@dataclass(frozen=True, slots=True)
class Dialect:
    """The strings around the parts of a conversation. Texts are trimmed before they are put in.

    A response is followed by `end`, its leaf: the end signal that the policy learns to write. Scoring replaces it
    by `score`. A later turn sees neither; it begins with `glue`, which closes the response before it.
    """

    name: str
    start: str
    system_open: str
    system_close: str
    empty_system: bool
    user_open: str
    user_close: str
    assistant_open: str
    label_open: str
    label_close: str
    response_close: str
    end: str
    score: str
    glue: str
    markers: tuple[str, ...]

    @property
    def opens(self) -> dict[Role, str]:
        return {"user": self.user_open, "assistant": self.assistant_open}


DIALECTS = {
    dialect.name: dialect
    for dialect in (
        # NVIDIA's format, byte for byte: the newline after the label line is required, there is no BOS.
        Dialect(
            name="nemo",
            start="",
            system_open="<extra_id_0>System\n",
            system_close="\n",
            empty_system=True,
            user_open="<extra_id_1>User\n",
            user_close="\n",
            assistant_open="<extra_id_1>Assistant\n",
            label_open="<extra_id_2>",
            label_close="\n",
            response_close="\n",
            end="<extra_id_1>",
            score="<extra_id_2>",
            glue="",
            markers=("<extra_id_0>", "<extra_id_1>", "<extra_id_2>"),
        ),
        Dialect(
            name="chatml",
            start="",
            system_open="<|im_start|>system\n",
            system_close="<|im_end|>\n",
            empty_system=False,
            user_open="<|im_start|>user\n",
            user_close="<|im_end|>\n",
            assistant_open="<|im_start|>assistant\n",
            label_open="",
            label_close="\n",
            response_close="",
            end="<|im_end|>",
            score="<|im_end|>",
            glue="<|im_end|>\n",
            markers=("<|im_start|>", "<|im_end|>"),
        ),
        Dialect(
            name="llama3",
            start="<|begin_of_text|>",
            system_open="<|start_header_id|>system<|end_header_id|>\n\n",
            system_close="<|eot_id|>",
            empty_system=False,
            user_open="<|start_header_id|>user<|end_header_id|>\n\n",
            user_close="<|eot_id|>",
            assistant_open="<|start_header_id|>assistant<|end_header_id|>\n\n",
            label_open="",
            label_close="\n",
            response_close="",
            end="<|eot_id|>",
            score="<|eot_id|>",
            glue="<|eot_id|>",
            markers=("<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"),
        ),
    )
}

# The system text of NVIDIA's SteerLM models.
NEMO_SYSTEM = (
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions."
)


def detect_dialect(tokenizer: PreTrainedTokenizerBase) -> str:
    """The dialect whose markers the tokenizer already knows; `nemo` where it knows none."""
    known = tokenizer.get_vocab()
    for name in ("chatml", "llama3"):
        if all(marker in known for marker in DIALECTS[name].markers):
            return name
    return "nemo"


def level_tokens(schema: Schema) -> list[str]:
    """`quality:0`, `quality:1`, ...: the words of label lines, for models in which each is one token."""
    return [f"{attribute.name}:{level}" for attribute in schema for level in attribute.levels]


def break_up(text: str, markers: Sequence[str]) -> str:
    """The text with a space after the first character of whatever reads as one of the markers."""
    for marker in markers:
        text = text.replace(marker, f"{marker[0]} {marker[1:]}")
    return text


@dataclass(frozen=True)
class Renderer:
    """Conversations to tokens, in one dialect, for one tokenizer and one schema.

    Markers that are in the tokenizer's vocabulary become their single tokens; others (the `nemo` dialect on
    NVIDIA's own checkpoints) are spelled out as plain text. Message text is trimmed, and wherever it imitates a
    marker or another special token a space is put after the first character, so it can never be read as one.
    """

    dialect: Dialect
    tokenizer: PreTrainedTokenizerBase
    schema: Schema

    def __post_init__(self) -> None:
        if not self.tokenizer.is_fast:
            raise ConfigError("the tokenizer has no fast (tokenizers) form; convert it first")
        for text in self.forbidden:
            if any(other in break_up(text, self.forbidden) for other in self.forbidden):
                raise ConfigError(f"the tokenizer's special token {text!r} cannot be told apart from user text")
        self._require_harmless_normalizer()

    def _require_harmless_normalizer(self) -> None:
        """Text is cleaned as typed, here and in the chat template; what it is normalised to must not bring a marker."""
        normalizer = self.tokenizer.backend_tokenizer.normalizer
        if normalizer is None:
            return
        as_typed = {str(token) for token in self.tokenizer.added_tokens_decoder.values() if not token.normalized}
        step = json.loads(normalizer.__getstate__())
        for text in self.forbidden:
            if text not in as_typed and _may_make(step, text):
                is_marker = text in self.dialect.markers
                remedy = (
                    "make the markers tokens (marker_tokens: true)" if is_marker else "save it with normalized=False"
                )
                raise ConfigError(
                    f"the tokenizer's normaliser may make {text!r} of other text, which users could forge it with; "
                    f"{remedy}"
                )

    @cached_property
    def forbidden(self) -> tuple[str, ...]:
        """Strings that message text must never contain, longest first: markers and special tokens."""
        return tuple(sorted({*self._special, *self.dialect.markers}, key=lambda text: (-len(text), text)))

    @cached_property
    def _special(self) -> tuple[str, ...]:
        return tuple(str(token) for token in self.tokenizer.added_tokens_decoder.values() if token.special)

    @cached_property
    def _pieces(self) -> PieceEncoder:
        return PieceEncoder(self.tokenizer, self._special, self.forbidden)

    @cached_property
    def end_ids(self) -> tuple[int, ...]:
        """Token ids of the end signal; one where the marker is in the vocabulary, several where it is spelled out."""
        # A text comes before it, never nothing: at the start of its input a tokenizer may spell it otherwise.
        return tuple(self._pieces.encode([(self.dialect.response_close or "\n", self.dialect.end, "")])[0])

    @cached_property
    def _close_ids(self) -> tuple[int, ...]:
        """What the dialect puts between a response's text and its leaf, where no token joins it to the text."""
        return tuple(self._pieces.encode([("a", self.dialect.response_close, self.dialect.end)])[0])

    def closing(self, segment: Segment) -> int:
        """How many of a response's last tokens close it: its leaf, and what the dialect puts before that. Where this is
        joined to the last token of the text, it counts as text.
        """
        text = segment.ids[segment.trained().start : segment.shared]
        close = len(self._close_ids)
        closed = close > 0 and text[-close:] == self._close_ids
        return len(segment.ids) - segment.shared + (close if closed else 0)

    @property
    def end_is_token(self) -> bool:
        return len(self.end_ids) == 1

    @cached_property
    def stop_ids(self) -> tuple[int, ...]:
        """Tokens that end an answer: the end signal where it is a single one, and the tokenizer's own end of text."""
        stops = [*(self.end_ids if self.end_is_token else ()), self.tokenizer.eos_token_id]
        return tuple(dict.fromkeys(stop for stop in stops if stop is not None))

    def clean(self, text: str) -> str:
        """The form in which message text enters a prompt: trimmed, with no marker in it."""
        return break_up(text.strip(), self.forbidden)

    def label_text(self, values: Labels | None) -> str:
        """The label line with what surrounds it; empty where no attribute is given."""
        line = self.schema.label_line(values) if values else ""
        return f"{self.dialect.label_open}{line}{self.dialect.label_close}" if line else ""

    def tree(
        self,
        conversation: Conversation,
        task: Task,
        labels: Mapping[int, Labels] | None = None,
        weights: Mapping[int, float] | None = None,
        foils: Mapping[int, Sequence[Labels]] | None = None,
    ) -> TokenTree:
        """Render a whole conversation.

        For the policy each assistant message `i` is headed by `labels[i]`, if any, and ends with the end signal;
        for scoring it has no labels and ends with the score mark. `weights[i]` is its loss weight (1 where
        absent; 0 makes it mere context). `foils[i]` lists other labels to put the same response under.
        """
        return self._tree(conversation, task, labels, weights, foils)

    def _tree(
        self,
        conversation: Conversation,
        task: Task,
        labels: Mapping[int, Labels] | None = None,
        weights: Mapping[int, float] | None = None,
        foils: Mapping[int, Sequence[Labels]] | None = None,
        unwritten: int = -1,
    ) -> TokenTree:
        """As `tree`; message `unwritten` is a response yet to come, of which only what stands before it counts."""
        d = self.dialect
        parts: list[list[tuple[TokenRole, str]]] = []
        heads: list[tuple[int, int, int]] = []  # parent segment, message, foil_of
        place: dict[int, int] = {}
        root = -1
        opening: list[tuple[TokenRole, str]] = []
        if d.start:
            opening.append(("marker", d.start))
        system = self.clean(conversation.system)
        if system:
            opening += [("marker", d.system_open), ("system", system + d.system_close)]
        elif d.empty_system:  # in one piece, as the two newlines may be one token
            opening.append(("marker", d.system_open + d.system_close))
        if opening:
            parts.append(opening)
            heads.append((-1, -1, -1))
            root = 0
        for index, message in enumerate(conversation.messages):
            parent = root if message.parent is None else place[message.parent]
            follows_response = message.parent is not None and conversation.messages[message.parent].role == "assistant"
            lead: list[tuple[TokenRole, str]] = [("marker", d.glue)] if follows_response and d.glue else []
            place[index] = len(parts)
            variants = [(labels or {}).get(index), *(foils or {}).get(index, ())]
            for number, values in enumerate(variants if message.role == "assistant" else [None]):
                known = values if task == "policy" else None
                parts.append(lead + self._turn(message, known, task, written=index != unwritten))
                heads.append((parent, index, place[index] if number else -1))
        encoded = self._encode_parts(parts)
        segments = []
        for part, tokens, (parent, index, foil_of) in zip(parts, encoded, heads, strict=True):
            ids = tuple(token for piece in tokens for token in piece)
            is_response = index >= 0 and conversation.messages[index].role == "assistant"
            segments.append(
                Segment(
                    ids=ids,
                    spans=tuple(Span(role, len(piece)) for (role, _), piece in zip(part, tokens, strict=True) if piece),
                    parent=parent,
                    message=index,
                    shared=len(ids) - len(tokens[-1]) if is_response else len(ids),
                    glue=len(tokens[0]) if part[0][1] == d.glue and d.glue else 0,
                    weight=(weights or {}).get(index, 1.0) if is_response else 0.0,
                    foil_of=foil_of,
                    ratings=conversation.messages[index].ratings if is_response and task == "score" else {},
                )
            )
        return TokenTree(conversation.id, tuple(segments))

    def _turn(self, message: Message, labels: Labels | None, task: Task, written: bool) -> list[tuple[TokenRole, str]]:
        d = self.dialect
        text = self.clean(message.text)
        if message.role == "user":
            if not text:
                return [("marker", d.user_open + d.user_close)]
            return [("marker", d.user_open), ("user", text + d.user_close)]
        head: list[tuple[TokenRole, str]] = [("marker", d.assistant_open)]
        if label := self.label_text(labels):
            head.append(("label", label))
        if written and not text:  # in one piece, as for an empty prompt; there is nothing to learn but the end
            role, before = head[-1]
            head[-1] = (role, before + d.response_close)
            response = ""
        else:
            response = text + d.response_close
        return [*head, ("response", response), ("end", d.end if task == "policy" else d.score)]

    def prompt(self, conversation: Conversation, labels: Mapping[int, Labels], attributes: Labels | None) -> list[int]:
        """The tokens after which the policy answers the last message of a single-threaded conversation.

        `labels[i]` are those of earlier assistant turns, `attributes` those asked for now.
        """
        asking = Message("assistant", "", parent=len(conversation.messages) - 1)
        last = len(conversation.messages)
        whole = Conversation(conversation.id, (*conversation.messages, asking), conversation.system)
        asked = {**labels, **({last: attributes} if attributes else {})}
        tree = self._tree(whole, "policy", labels=asked, unwritten=last)
        segment = tree.segments[-1]
        return tree.path_ids(len(tree.segments) - 1)[: -len(segment.trained())]

    def thread(self, conversation: Conversation, task: Task, labels: Mapping[int, Labels] | None = None) -> list[int]:
        """The tokens of a single-threaded conversation, its last response's leaf included."""
        tree = self.tree(conversation, task, labels)
        return tree.path_ids(len(tree.segments) - 1)

    def _encode_parts(self, parts: Sequence[Sequence[tuple[TokenRole, str]]]) -> list[list[list[int]]]:
        """Encode the pieces of every segment, each in the context of what stands before it."""
        wanted: list[tuple[str, str, str]] = []
        for number, part in enumerate(parts):
            # A path goes on after what its parent shares, which ends in a newline or a special token.
            before = "" if number == 0 else "\n"
            # Every turn opens with the same marker.
            following = "" if part[-1][0] == "end" else self.dialect.user_open
            for k, (_, text) in enumerate(part):
                wanted.append((before, text, next((later for _, later in part[k + 1 :] if later), following)))
                before = text or before
        flat = iter(self._pieces.encode(wanted))
        return [[next(flat) for _ in part] for part in parts]

    def chat_template(self, task: Task, system: str = "") -> str:
        """A Jinja chat template that yields this renderer's tokens in bare transformers and in vLLM.

        The policy's takes `attributes` (merged over the schema's defaults; an attribute set to none is left out),
        and `attributes` on assistant messages of the history, which otherwise get those of the request. That of
        the attribute model ends each conversation with the score mark.
        """
        return chat_template(asdict(self.dialect), self.schema, self.forbidden, task, system)


def _may_make(step: Mapping[str, Any], text: str) -> bool:
    """Whether a step of a normaliser could make `text` of something else; all may that are not known to be harmless."""
    match step["type"]:
        case "Sequence":
            return any(_may_make(each, text) for each in step["normalizers"])
        case "NFC":  # the only ASCII that it makes of other characters
            return not text.isascii() or not set(text).isdisjoint("K;`")
        case "Prepend":
            return not set(text).isdisjoint(step["prepend"])
        case "Replace":  # by nothing, it brings together what it stood between
            return not step["content"] or not set(text).isdisjoint(step["content"])
    return True
