"""NeMo-Aligner's two layouts: chat records with label strings, and regression rows of text with numbers.

Chat (attribute-conditioned SFT): `{"system", "mask", "type", "conversations": [{"from", "value", "label"}]}`.
Regression (attribute model): `{"text", "label"}`, where the text holds all turns without labels and ends in
`<extra_id_2>`, and the label is one number for each attribute, -100 where it is unrated.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace

from steerlm.attributes import Schema
from steerlm.conversation import Conversation, Role
from steerlm.sources.options import ImportOptions
from steerlm.sources.records import Record, read_sources
from steerlm.sources.report import Report
from steerlm.sources.trees import Forest, Turn, split_turns

MISSING = -100.0
SYSTEM_START = "<extra_id_0>System\n"
LABEL_START = "<extra_id_2>"
_TYPES = (None, "VALUE_TO_TEXT", "TEXT_TO_VALUE")
_NAMES: dict[str, Role] = {
    "user": "user",
    "human": "user",
    "prompter": "user",
    "assistant": "assistant",
    "gpt": "assistant",
}


def read_nemo(
    sources: tuple[str, ...], options: ImportOptions, schema: Schema, report: Report
) -> Iterator[Conversation]:
    """Conversations of either layout, which may be mixed; threads that begin alike are joined into trees.

    Turns that are embedded in a value with `<extra_id_1>` become turns. Raises `DataError` for label strings with
    attributes that the schema lacks, unless other attributes were asked for by name.
    """
    wanted = options.attributes_of(schema, schema.names)
    forest = Forest("nemo", report, keep_repeats=False)
    for record in read_sources(sources, report):
        with report.tolerating("records"):
            if "conversations" in record.data:
                system, turns = _chat_turns(record)
            elif "text" in record.data:
                system, turns = _regression_turns(record, schema)
            else:
                raise record.fault("expected 'conversations' (chat) or 'text' and 'label' (regression)")
            rated, left_out = _rated(record, turns, schema, wanted, bool(options.attributes))
            forest.add(system if options.system is None else options.system, rated, record.optional_text("dataset"))
            for reason, count in left_out.items():
                report.read["ratings"] += count
                report.leave_out("ratings", reason, count)
    yield from forest.conversations()


def _chat_turns(record: Record) -> tuple[str, list[Turn]]:
    if record.data.get("type") not in _TYPES:
        raise record.fault(f"type={record.data['type']!r} must be VALUE_TO_TEXT, TEXT_TO_VALUE or null")
    mask = record.optional_text("mask")
    turns: list[Turn] = []
    for number, item in enumerate(record.items("conversations")):
        part = record.part(f"turn {number}", item)
        role = _role(part, mask)
        label = part.optional_text("label") or None
        *before, last = split_turns(part.text("value"), role)
        if label and last.role != role:
            raise part.fault("its value ends with a turn of the other side, so the label belongs to neither")
        turns += [*before, replace(last, label=label or last.label)]
    if not turns:
        raise record.fault("conversations must be a list of at least one turn")
    return record.optional_text("system") or "", turns


def _role(part: Record, mask: str | None) -> Role:
    """The side that a turn is on; `mask` is the name of the side that is not trained, which must be the user."""
    name = part.text("from")
    role = _NAMES.get(name.lower())
    if mask is None:
        if role is None:
            raise part.fault(f"from={name!r} must be User or Assistant")
        return role
    masked: Role = "user" if name == mask else "assistant"
    if role not in (None, masked):
        raise part.fault(f"from={name!r} with mask={mask!r}: the mask must name the user's side")
    return masked


def _regression_turns(record: Record, schema: Schema) -> tuple[str, list[Turn]]:
    text = record.text("text")
    end = f"\n{LABEL_START}"
    if not text.startswith(SYSTEM_START) or not text.endswith(end):
        raise record.fault(f"text must begin with {SYSTEM_START!r} and end with {end!r}")
    opening, *turns = split_turns(text[len(SYSTEM_START) : -len(end)], "user")
    if not turns or turns[-1].role != "assistant":
        raise record.fault("the last turn of text must be the assistant's, which the label rates")
    label = record.items("label")
    if len(label) != len(schema):
        raise record.fault(
            f"label has {len(label)} numbers where the schema has {len(schema)} attributes; declare them with --schema"
        )
    ratings: dict[str, float] = {}
    for attribute, value in zip(schema, label, strict=True):
        if value == MISSING or value is None:
            continue
        if fault := attribute.fault(value):
            raise record.fault(f"label: {fault} ({MISSING:g} where it is unrated)")
        ratings[attribute.name] = float(value)
    return opening.text, [*turns[:-1], replace(turns[-1], ratings=ratings)]


def _rated(
    record: Record, turns: list[Turn], schema: Schema, wanted: tuple[str, ...], chosen: bool
) -> tuple[list[Turn], dict[str, int]]:
    """The turns with their label strings read, and how many ratings were left out for which reason."""
    left_out = {"of user messages": 0, "of attributes not taken": 0}
    found: list[Turn] = []
    for number, turn in enumerate(turns):
        where = Record(f"{record.where}: turn {number}", record.data)
        values: Mapping[str, float | str] = turn.ratings if turn.label is None else _label_items(where, turn.label)
        if turn.role == "user":
            left_out["of user messages"] += len(values)
            found.append(Turn("user", turn.text))
            continue
        unknown = [name for name in values if name not in schema]
        if unknown and not chosen:
            raise where.fault(
                f"{unknown[0]!r} is not an attribute of the schema ({', '.join(schema.names)}); "
                "declare it with --schema, or name the attributes to take with --attributes"
            )
        taken = {name: _number(where, name, value) for name, value in values.items() if name in wanted}
        left_out["of attributes not taken"] += len(values) - len(taken)
        if faults := schema.faults(taken):
            raise where.fault("; ".join(faults))
        found.append(Turn("assistant", turn.text, taken))
    return found, left_out


def _label_items(where: Record, line: str) -> dict[str, str]:
    """The names and values of a label string in any schema; values that nobody asks for need not be numbers."""
    values: dict[str, str] = {}
    for item in filter(None, (part.strip() for part in line.split(","))):
        name, colon, value = item.partition(":")
        if not colon:
            raise where.fault(f"label {line!r}: {item!r} is not of the form attribute:number")
        if name in values:
            raise where.fault(f"label {line!r}: {name} is given twice")
        values[name] = value
    return values


def _number(where: Record, name: str, value: float | str) -> float:
    try:
        return float(value)
    except ValueError:
        raise where.fault(f"label {name}:{value} must be a number") from None
