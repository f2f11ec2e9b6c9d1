"""HelpSteer and HelpSteer2: rows of prompt, response and whole-number ratings, several rows a prompt."""

from __future__ import annotations

from collections.abc import Iterator

from steerlm.attributes import Schema
from steerlm.conversation import Conversation
from steerlm.dialects import NEMO_SYSTEM
from steerlm.sources.options import ImportOptions
from steerlm.sources.records import Record, read_sources
from steerlm.sources.report import Report
from steerlm.sources.trees import Forest, Turn, split_turns


def read_helpsteer(
    sources: tuple[str, ...], options: ImportOptions, schema: Schema, report: Report
) -> Iterator[Conversation]:
    """One conversation a prompt, with a response a row; HelpSteer2's prompts of several turns become turns.

    Every column named like an attribute of the schema is a rating. Equal responses to one prompt stay apart, as
    each was sampled and rated by itself.
    """
    wanted = options.attributes_of(schema, schema.names)
    system = NEMO_SYSTEM if options.system is None else options.system
    forest = Forest("helpsteer", report, keep_repeats=True)
    for record in read_sources(sources, report):
        with report.tolerating("records"):
            turns = _prompt(record)
            response = record.text("response", _hint(record))
            ratings, rest = _ratings(record, schema, wanted)
            forest.add(system, [*turns, Turn("assistant", response, ratings)])
            report.read["ratings"] += rest
            report.leave_out("ratings", "of attributes not taken", rest)
    yield from forest.conversations()


def _prompt(record: Record) -> list[Turn]:
    turns = split_turns(record.text("prompt", _hint(record)), "user")
    if turns[-1].role != "user":
        raise record.fault("the prompt ends with a turn of the assistant; the last one must be the user's")
    return turns


def _hint(record: Record) -> str:
    if "response_1" in record.data:
        return " (these rows compare two responses and rate none; import HelpSteer's rated rows)"
    return " (HelpSteer's columns are prompt, response and one for each attribute)"


def _ratings(record: Record, schema: Schema, wanted: tuple[str, ...]) -> tuple[dict[str, float], int]:
    """The ratings taken, and the number of those left where they are."""
    found = {name: record.data[name] for name in schema.names if record.data.get(name) is not None}
    taken = {name: value for name, value in found.items() if name in wanted}
    if faults := schema.faults(taken):
        raise record.fault("; ".join(faults))
    return {name: float(value) for name, value in taken.items()}, len(found) - len(taken)
