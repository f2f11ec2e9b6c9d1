"""Importers: from the files that people have to conversations, with books kept of all that is left out.

>>> imported = import_conversations("oasst", "messages.jsonl", ImportOptions(languages=("en",)))
>>> print(imported.report)
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, Protocol, get_args

from steerlm.attributes import STEERLM, Schema
from steerlm.conversation import Conversation
from steerlm.errors import ConfigError
from steerlm.sources.helpsteer import read_helpsteer
from steerlm.sources.hub import PREFIX, parse_reference
from steerlm.sources.nemo import read_nemo
from steerlm.sources.nemo_export import ExportReport, to_nemo_regression, to_nemo_sft
from steerlm.sources.oasst import read_oasst
from steerlm.sources.options import ImportOptions
from steerlm.sources.own import read_own
from steerlm.sources.report import Imported, Report
from steerlm.sources.responses import read_responses
from steerlm.sources.split import split_conversations
from steerlm.sources.trees import without

__all__ = [
    "SOURCES",
    "ExportReport",
    "ImportOptions",
    "Imported",
    "Kind",
    "Report",
    "Source",
    "import_conversations",
    "split_conversations",
    "to_nemo_regression",
    "to_nemo_sft",
]

Kind = Literal["oasst", "helpsteer", "nemo", "responses", "jsonl"]


class _Read(Protocol):
    def __call__(
        self, sources: tuple[str, ...], options: ImportOptions, schema: Schema, report: Report
    ) -> Iterator[Conversation]: ...


@dataclass(frozen=True)
class Source:
    """A kind of source: how it is read, what it is, and the options that would mean nothing to it."""

    read: _Read
    description: str
    refuses: frozenset[str] = frozenset()


_OASST_ONLY = frozenset({"languages", "keep_deleted", "keep_rejected", "drop_unreviewed", "min_labels"})
SOURCES: dict[str, Source] = {
    "oasst": Source(read_oasst, "Open Assistant 1 and 2: flat messages or nested trees"),
    "helpsteer": Source(read_helpsteer, "HelpSteer and HelpSteer2: prompt, response, ratings", _OASST_ONLY),
    "nemo": Source(read_nemo, "NeMo-Aligner: chat records with label strings, or regression rows", _OASST_ONLY),
    "responses": Source(read_responses, "prompts with several unrated answers each", _OASST_ONLY | {"attributes"}),
    "jsonl": Source(read_own, "conversations in our own form", _OASST_ONLY),
}
assert set(SOURCES) == set(get_args(Kind))


def import_conversations(
    kind: str,
    sources: str | Path | Sequence[str | Path],
    options: ImportOptions | None = None,
    schema: Schema = STEERLM,
) -> Imported:
    """Read one or more sources of a kind: file paths, or `hub:OWNER/NAME[@REVISION][:SPLIT or /FILE]`.

    Ids are unique in the result and depend only on the data. Where a single data set of the hub is read, its
    conversations have `hub:OWNER/NAME` for their source. Raises `DataError` for what cannot be read or is
    faulty (with file, line and what to do), `SchemaError` and `ConfigError` for options that do not fit.
    """
    options = options or ImportOptions()
    if kind not in SOURCES:
        raise ConfigError(f"unknown kind of source {kind!r}; choose one of {', '.join(SOURCES)}")
    if idle := sorted(options.changed() & SOURCES[kind].refuses):
        raise ConfigError(f"{idle[0]} means nothing for {kind} data; leave it out")
    names = tuple(str(source) for source in ([sources] if isinstance(sources, str | Path) else sources))
    if not names:
        raise ConfigError("no source given; name files, or data sets as hub:OWNER/NAME")
    if twice := [name for name in names if names.count(name) > 1]:
        raise ConfigError(f"{twice[0]} is given twice")
    report = Report(kind, names, options.skip_faulty)
    # Another data set may have the same layout: of one that is named, the name says more than that of the kind.
    origin = kind
    if len(names) == 1 and names[0].startswith(PREFIX):
        origin = f"{PREFIX}{parse_reference(names[0]).repository}"
    kept: list[Conversation] = []
    for conversation in SOURCES[kind].read(names, options, schema, report):
        short = without(conversation, _too_long(conversation, options.max_characters), report)
        if short is None:
            continue
        if options.max_conversations is not None and len(kept) >= options.max_conversations:
            report.leave_out_conversation(f"beyond the first {options.max_conversations}", short)
        else:
            kept.append(replace(short, source=origin) if short.source == kind else short)
    report.keep(kept)
    return Imported(tuple(kept), report)


def _too_long(conversation: Conversation, limit: int | None) -> dict[int, str]:
    if limit is None:
        return {}
    return {
        index: f"longer than {limit} characters"
        for index, message in enumerate(conversation.messages)
        if len(message.text) > limit
    }
