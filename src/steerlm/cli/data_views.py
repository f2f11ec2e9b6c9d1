"""What `steerlm data` prints: trees of messages and of tokens, and tables of statistics."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text
from rich.tree import Tree

from steerlm.attributes import STEERLM, Schema
from steerlm.chat_template import Task
from steerlm.conversation import Conversation, LabelsFrom, Message
from steerlm.dialects import Renderer
from steerlm.sources.statistics import Lengths, Statistics, TokenStatistics
from steerlm.tokens import Segment, TokenRole, TokenTree

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_STYLES: dict[TokenRole, str] = {
    "system": "magenta",
    "marker": "bright_black",
    "label": "yellow",
    "user": "cyan",
    "response": "green",
    "end": "red",
}
# Escape sequences in a text must not reach the terminal, nor marks that turn the direction of the text around them;
# line ends and tabs may.
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069]")
_LOSS_OPEN, _LOSS_CLOSE = "⟦", "⟧"


def printable(text: str) -> str:
    """The text with control characters made visible, safe for a terminal."""
    return _CONTROL.sub(lambda match: match[0].encode("unicode_escape").decode(), text)


def conversation_view(conversation: Conversation) -> RenderableType:
    """A conversation as a tree of messages with their ratings."""
    about = f"{conversation.id}  {conversation.source}".rstrip()
    tree = Tree(Text(printable(about), style="bold"), guide_style="bright_black")
    if conversation.system:
        tree.add(Text.assemble(("system  ", "bold magenta"), printable(conversation.system)))
    branches: list[Tree] = []
    for index, message in enumerate(conversation.messages):
        parent = tree if message.parent is None else branches[message.parent]
        branches.append(parent.add(_message_text(index, message)))
    return tree


def _message_text(index: int, message: Message) -> Text:
    text = Text.assemble((f"{index} {message.role}  ", "bold green" if message.role == "assistant" else "bold cyan"))
    if message.ratings:
        text.append(f"{_values(message.ratings)}  ", "yellow")
    if message.predicted:
        by = f" by {message.predicted_by}" if message.predicted_by else ""
        text.append(f"predicted{by}: {_values(message.predicted)}  ", "yellow dim")
    return text.append("\n").append(printable(message.text))


def _values(values: Mapping[str, float]) -> str:
    return ", ".join(f"{printable(name)} {value:.2f}".removesuffix(".00") for name, value in values.items())


def token_view(conversation: Conversation, renderer: Renderer, task: Task, labels_from: LabelsFrom) -> RenderableType:
    """A conversation as its tokens.

    The policy is trained on responses that have labels, and on their end signal; the attribute model at the
    score position of responses that people rated.
    """
    return tree_view(_rendered(conversation, renderer, task, labels_from), renderer, task)


def tree_view(tokens: TokenTree, renderer: Renderer, task: Task) -> RenderableType:
    """A rendered conversation, coloured by role; the tokens that a loss falls on stand in ⟦ ⟧."""
    tree = Tree(Text(printable(tokens.conversation), style="bold"), guide_style="bright_black")
    branches: list[Tree] = []
    trained = 0
    for segment in tokens.segments:
        text, count = _segment_text(segment, renderer.tokenizer, task)
        trained += count
        branches.append((branches[segment.parent] if segment.parent >= 0 else tree).add(text))
    legend = Text.assemble(*((f"{role} ", style) for role, style in _STYLES.items()))
    legend.append(f"{_LOSS_OPEN}with loss{_LOSS_CLOSE}", "bold")
    counts = Text(f"{renderer.dialect.name}, {task}: {tokens.size} tokens, {trained} with loss")
    return Group(legend, counts, tree)


def _rendered(conversation: Conversation, renderer: Renderer, task: Task, labels_from: LabelsFrom) -> TokenTree:
    labels: dict[int, Mapping[str, float]] = {}
    weights: dict[int, float] = {}
    for index in conversation.responses:
        message = conversation.messages[index]
        # A trained model knows only the attributes of its own data.
        labels[index] = renderer.schema.known(message.labels(labels_from))
        weights[index] = float(bool(labels[index] if task == "policy" else message.ratings))
    return renderer.tree(conversation, task, labels, weights)


def _segment_text(segment: Segment, tokenizer: PreTrainedTokenizerBase, task: Task) -> tuple[Text, int]:
    """The tokens of a segment, neighbours told apart by their shade, and how many of them have a loss."""
    loss = segment.trained() if segment.weight > 0 else range(0)
    if task == "score":
        loss = loss[-1:]
    text = Text()
    position = 0
    texts = token_texts(tokenizer, segment.ids)
    for role, length in segment.spans:
        for at in range(position, position + length):
            if at == loss.start and loss:
                text.append(_LOSS_OPEN, "bold")
            style = f"{_STYLES[role]}{' bold' if at in loss else ''}{' on grey15' if at % 2 else ''}"
            text.append(printable(texts[at]).replace("\n", "⏎\n"), style)
            if loss and at == loss.stop - 1:
                text.append(_LOSS_CLOSE, "bold")
        position += length
    if text.plain.endswith("\n"):
        text.right_crop(1)
    return text, len(loss)


def token_texts(tokenizer: PreTrainedTokenizerBase, ids: tuple[int, ...]) -> list[str]:
    """The text that each token adds; a character of several tokens stands with the last of them."""

    def decoded(start: int, stop: int) -> str:
        text = tokenizer.decode(list(ids[start:stop]), skip_special_tokens=False, clean_up_tokenization_spaces=False)
        assert isinstance(text, str)
        return text

    texts: list[str] = []
    start = 0
    for at in range(len(ids)):
        # Decoding together with the token before keeps the space that opens a SentencePiece token.
        anchor = max(start - 1, 0)
        piece = decoded(anchor, at + 1)[len(decoded(anchor, start)) if start else 0 :]
        # A character has at most four bytes, so at most four tokens.
        if piece.endswith("\ufffd") and at + 1 < len(ids) and at - start < 3:
            texts.append("")
            continue
        texts.append(piece)
        start = at + 1
    return texts


def statistics_view(found: Statistics) -> RenderableType:
    """Statistics as tables: counts, attributes, correlations, lengths."""
    counts = _table("", "count")
    for name in ("conversations", "messages", "responses", "labelled_responses", "threads"):
        counts.add_row(name.replace("_", " "), str(getattr(found, name)))
    counts.add_row("most responses to a prompt", str(found.most_responses_to_a_prompt))
    for source, count in found.sources.items():
        counts.add_row(f"from {printable(source) or 'an unnamed source'}", str(count))
    parts: list[RenderableType] = [counts, _attribute_table(found)]
    present = [name for name, item in found.attributes.items() if item.count]
    if len(present) > 1:
        parts.append(_correlation_table(found, present))
    parts.append(_length_table(found))
    if found.tokens is not None:
        parts.append(_ratio_text(found.tokens))
    return Group(*parts)


def _attribute_table(found: Statistics) -> Table:
    levels = sorted({level for item in found.attributes.values() for level in item.histogram})
    table = _table(found.values_from, "count", "mean", "sd", *(str(level) for level in levels))
    for name, item in found.attributes.items():
        bars = [str(item.histogram[level]) if level in item.histogram else "" for level in levels]
        table.add_row(name, str(item.count), _number(item.mean), _number(item.sd), *bars)
    return table


def _correlation_table(found: Statistics, present: list[str]) -> Table:
    # Numbers for column names keep nine attributes within 80 characters.
    table = _table("correlation", *(str(number) for number in range(1, len(present) + 1)))
    for number, a in enumerate(present, start=1):
        table.add_row(f"{number} {a}", *(_number(found.correlations[a][b], 2) for b in present))
    return table


def _length_table(found: Statistics) -> Table:
    table = _table("length", "mean", "median", "90%", "longest", "total")
    rows = {
        "prompts, characters": found.prompt_characters,
        "responses, characters": found.response_characters,
    }
    if found.tokens is not None:
        rows |= {"prompts, tokens": found.tokens.prompts, "responses, tokens": found.tokens.responses}
    for name, item in rows.items():
        table.add_row(name, *_length_cells(item))
    return table


def _length_cells(item: Lengths) -> list[str]:
    return [f"{item.mean:.1f}", f"{item.median:g}", f"{item.p90:.0f}", str(item.longest), str(item.total)]


def _ratio_text(tokens: TokenStatistics) -> Text:
    return Text(
        f"longest thread: {tokens.longest_path} tokens ({tokens.dialect})\n"
        f"training: {tokens.tree} tokens as trees, {tokens.threads} as threads ({tokens.threads_to_tree:.2f} times)\n"
        f"scoring: {tokens.score_tree} tokens as trees, {tokens.requests} response by response "
        f"({tokens.requests_to_tree:.2f} times)"
    )


def _table(first: str, *rest: str) -> Table:
    table = Table(box=None, pad_edge=False)
    table.add_column(first, style="bold")
    for name in rest:
        table.add_column(name, justify="right", no_wrap=True)
    return table


def _number(value: float | None, digits: int = 3) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


def stdout() -> Console:
    """Where results go. Texts are printed as they are: no markup is read in them, and no numbers coloured."""
    return Console(highlight=False, markup=False, emoji=False)


def schema_of(path: Path | None) -> Schema:
    """The attributes of a file; without one, the nine of SteerLM."""
    return Schema.from_yaml(path) if path is not None else STEERLM


def print_json(data: object) -> None:
    """Print what a program may read."""
    print(json.dumps(data, ensure_ascii=False, indent=2))
