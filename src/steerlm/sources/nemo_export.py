"""Writing NeMo-Aligner's two layouts (see `steerlm.sources.nemo`), byte for byte as its recipe's scripts do."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

from steerlm.attributes import STEERLM, Schema
from steerlm.conversation import Conversation, LabelsFrom
from steerlm.dialects import DIALECTS, break_up
from steerlm.sources.nemo import LABEL_START, MISSING, SYSTEM_START

_NAMES = {"user": "User", "assistant": "Assistant"}
_MARKERS = DIALECTS["nemo"].markers


@dataclass
class ExportReport:
    """What an export did. A text with one of NeMo's markers in it gets a space into the marker, as in our prompts."""

    records: int = 0
    single_messages: int = 0
    unlabelled_responses: int = 0
    markers_broken: int = 0

    def to_dict(self) -> dict[str, int]:
        return asdict(self)

    def __str__(self) -> str:
        notes = {
            f"left out {self.single_messages} threads of a single message": self.single_messages,
            f"{self.unlabelled_responses} responses have no label": self.unlabelled_responses,
            f"{self.markers_broken} texts held a marker, which was broken up": self.markers_broken,
        }
        return "\n".join([f"wrote {self.records} records", *(note for note, count in notes.items() if count)])


def to_nemo_sft(
    conversations: Iterable[Conversation],
    schema: Schema = STEERLM,
    labels: LabelsFrom = "ratings",
    report: ExportReport | None = None,
) -> Iterator[dict[str, Any]]:
    """Chat records for attribute-conditioned SFT, one for each thread from a root to a leaf.

    A response's label string comes from its `labels`; it is null where there are none. Texts are not trimmed. As in
    the recipe, threads of a single message are left out.
    """
    report = ExportReport() if report is None else report
    for conversation in conversations:
        system, texts = _texts(conversation.system, conversation, report)
        lines = {
            index: schema.label_line(conversation.messages[index].labels(labels)) for index in conversation.responses
        }
        report.unlabelled_responses += sum(not line for line in lines.values())
        for thread in conversation.threads():
            if len(thread) < 2:
                report.single_messages += 1
                continue
            report.records += 1
            yield {
                "conversations": [
                    {
                        "value": texts[index],
                        "from": _NAMES[conversation.messages[index].role],
                        "label": lines.get(index) or None,
                    }
                    for index in thread
                ],
                "system": system,
                "mask": "User",
                "type": "VALUE_TO_TEXT",
            }


def to_nemo_regression(
    conversations: Iterable[Conversation],
    schema: Schema = STEERLM,
    labels: LabelsFrom = "ratings",
    rounded: bool = True,
    system: str | None = None,
    report: ExportReport | None = None,
) -> Iterator[dict[str, Any]]:
    """Regression rows for the attribute model, one for each labelled response.

    The text is the system text, all turns up to the response without labels, and `<extra_id_2>`; the label is one
    float for each attribute of the schema, -100 where there is none. The recipe rounds to whole numbers (half to
    even); `rounded=False` keeps the values. The system text is the conversation's own, where the recipe always
    writes `steerlm.dialects.NEMO_SYSTEM`; `system` replaces it.
    """
    report = ExportReport() if report is None else report
    for conversation in conversations:
        opening, texts = _texts(conversation.system if system is None else system, conversation, report)
        paths = [f"{SYSTEM_START}{opening}\n"]
        for index, message in enumerate(conversation.messages):
            before = paths[0] if message.parent is None else paths[message.parent + 1]
            paths.append(f"{before}<extra_id_1>{_NAMES[message.role]}\n{texts[index]}\n")
            if message.role != "assistant":
                continue
            values = message.labels(labels)
            if not values:
                report.unlabelled_responses += 1
                continue
            schema.label_line(values)  # raises SchemaError where the schema lacks an attribute
            report.records += 1
            yield {
                "text": paths[-1] + LABEL_START,
                "label": [
                    MISSING
                    if attribute.name not in values
                    else float(attribute.level(values[attribute.name]) if rounded else values[attribute.name])
                    for attribute in schema
                ],
            }


def _texts(system: str, conversation: Conversation, report: ExportReport) -> tuple[str, list[str]]:
    """The system text and those of the messages, with no marker in them."""
    before = [system, *(message.text for message in conversation.messages)]
    after = [break_up(text, _MARKERS) for text in before]
    report.markers_broken += sum(a != b for a, b in zip(before, after, strict=True))
    return after[0], after[1:]
