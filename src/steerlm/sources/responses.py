"""Pools of answers without ratings: a prompt and several responses a row, something to annotate."""

from __future__ import annotations

from collections.abc import Iterator

from steerlm.attributes import Schema
from steerlm.conversation import Conversation
from steerlm.dialects import NEMO_SYSTEM
from steerlm.sources.options import ImportOptions
from steerlm.sources.records import Record, read_sources
from steerlm.sources.report import Report
from steerlm.sources.trees import Forest, Turn, split_turns


def read_responses(
    sources: tuple[str, ...], options: ImportOptions, schema: Schema, report: Report
) -> Iterator[Conversation]:
    """Rows of `{"prompt", "responses": [{"text", ...} or a string, ...]}`, one conversation a prompt.

    Equal responses stay apart, as each was sampled by itself. Other keys of a response, such as the model that
    wrote it, have no place in a conversation and are not kept.
    """
    system = NEMO_SYSTEM if options.system is None else options.system
    forest = Forest("responses", report, keep_repeats=True)
    for record in read_sources(sources, report):
        with report.tolerating("records"):
            prompt = split_turns(record.text("prompt"), "user")
            if prompt[-1].role != "user":
                raise record.fault("the prompt ends with a turn of the assistant; the last one must be the user's")
            texts = [_text(record, number, item) for number, item in enumerate(record.items("responses"))]
            if not texts:
                raise record.fault("responses must be a list of at least one answer")
            for text in texts:
                forest.add(system, [*prompt, Turn("assistant", text)])
    yield from forest.conversations()


def _text(record: Record, number: int, item: object) -> str:
    if isinstance(item, str):
        return record.part(f"response {number}", {"text": item}).text("text")
    return record.part(f"response {number}", item).text("text")
