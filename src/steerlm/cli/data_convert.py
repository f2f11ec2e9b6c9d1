"""`steerlm data import|export`: conversation files from other formats, and into them."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

from cyclopts import Parameter

from steerlm.cli.data_views import print_json, schema_of, stdout
from steerlm.conversation import LabelsFrom
from steerlm.errors import ConfigError, DataError, SteerLMError
from steerlm.files import read_conversations, write_conversations, write_jsonl
from steerlm.sources import (
    ExportReport,
    ImportOptions,
    Kind,
    import_conversations,
    split_conversations,
    to_nemo_regression,
    to_nemo_sft,
)
from steerlm.sources.detect import detect_kind

ExportKind = Literal["nemo-sft", "nemo-regression"]


def import_command(
    kind: Kind,
    sources: list[str],
    /,
    *,
    out: Path,
    options: Annotated[ImportOptions | None, Parameter(name="*")] = None,
    split: float | None = None,
    seed: int = 0,
    schema: Path | None = None,
    json_: Annotated[bool, Parameter(name="--json")] = False,
) -> None:
    """Turn data of another format into a conversation file. Says what it read, kept and left out, and why.

    For example: steerlm data import oasst hub:OpenAssistant/oasst1 --languages en --out oasst.jsonl --split 0.1

    Parameters
    ----------
    kind
        oasst: Open Assistant 1 or 2, flat or nested. helpsteer: HelpSteer or HelpSteer2. nemo: NeMo-Aligner's chat
        or regression records. responses: prompts with several unrated answers. jsonl: our own form.
    sources
        Files (.jsonl, .jsonl.gz, .jsonl.zst, .parquet), or data sets of the Hugging Face hub as
        hub:OWNER/NAME[@REVISION][:SPLIT or /FILE].
    out
        Conversation file to write; .gz and .zst are compressed.
    options
        What to take and what to leave out.
    split
        Hold this share of the conversations out, into a second file: data.jsonl and data.held-out.jsonl.
    seed
        Seed of the split. A conversation's side depends on its id and the seed alone.
    schema
        YAML file with the attributes; without one, the nine of SteerLM.
    json_
        Print the counts as JSON.
    """
    _check_out(out, sources)
    if split is not None and not 0 < split < 1:
        raise ConfigError(f"--split {split} must lie between 0 and 1, such as 0.1")
    try:
        imported = import_conversations(kind, sources, options, schema_of(schema))
    except DataError as error:
        raise DataError(f"{error}{_other_kind(kind, sources)}") from error
    if not imported.conversations:
        raise DataError(f"nothing to write to {out}:\n{imported.report}")
    written = {str(out): imported.conversations}
    if split is not None:
        kept, held_out = split_conversations(imported.conversations, split, seed)
        written = {str(out): tuple(kept), str(held_out_name(out)): tuple(held_out)}
        for name, conversations in written.items():
            if not conversations:
                raise DataError(f"--split {split} leaves nothing for {name}; take another share, or more data")
    for name, conversations in written.items():
        write_conversations(name, conversations)
    if json_:
        counts = {name: len(conversations) for name, conversations in written.items()}
        print_json({**imported.report.to_dict(), "written": counts})
        return
    stdout().print(str(imported.report), soft_wrap=True)
    for name, conversations in written.items():
        stdout().print(f"wrote {len(conversations)} conversations to {name}", soft_wrap=True)


def export_command(
    kind: ExportKind,
    file: Path,
    /,
    *,
    out: Path,
    labels: LabelsFrom = "ratings",
    exact: bool = False,
    system: str | None = None,
    schema: Path | None = None,
    json_: Annotated[bool, Parameter(name="--json")] = False,
) -> None:
    """Write conversations in a format of NeMo-Aligner.

    Parameters
    ----------
    kind
        nemo-sft: chat records with label strings, one a thread, for attribute-conditioned SFT. nemo-regression: rows
        of text and numbers, one a labelled response, for its attribute model.
    file
        Conversation file to read.
    out
        JSONL file to write; .gz and .zst are compressed.
    labels
        Where labels come from: people, the attribute model, or people first and the model for the rest.
    exact
        Keep ratings as they are, where NeMo's recipe rounds them to whole numbers (nemo-regression only).
    system
        System text of every row instead of the conversation's own (nemo-regression only).
    schema
        YAML file with the attributes; without one, the nine of SteerLM.
    json_
        Print the counts as JSON.
    """
    _check_out(out, [str(file)])
    attributes = schema_of(schema)
    conversations = read_conversations(file, attributes)
    report = ExportReport()
    if kind == "nemo-regression":
        records = to_nemo_regression(conversations, attributes, labels, not exact, system, report)
    elif exact or system is not None:
        raise ConfigError(f"{'--exact' if exact else '--system'} means nothing for nemo-sft; leave it out")
    else:
        records = to_nemo_sft(conversations, attributes, labels, report)
    write_jsonl(out, _some(records, f"{file}: nothing in it to export as {kind} with labels from {labels}"))
    if json_:
        print_json({**report.to_dict(), "written": str(out)})
    else:
        stdout().print(f"{report}\nto {out}", soft_wrap=True)


def held_out_name(out: Path) -> Path:
    """`data.jsonl.gz` becomes `data.held-out.jsonl.gz`."""
    stem, dot, suffixes = out.name.partition(".jsonl")
    if not dot:
        stem, suffixes = out.stem, out.suffix
    return out.with_name(f"{stem}.held-out{dot}{suffixes}")


def _check_out(out: Path, sources: list[str]) -> None:
    if out.suffix == ".parquet":
        raise ConfigError(f"{out}: Parquet is read but not written; name a .jsonl, .jsonl.gz or .jsonl.zst file")
    if any(out.resolve() == Path(source).resolve() for source in sources):
        raise ConfigError(f"{out} is read and cannot be written to in the same run; give --out another name")


def _other_kind(kind: Kind, sources: list[str]) -> str:
    """A hint where a source that could not be read looks like another kind of data."""
    for source in sources:
        with contextlib.suppress(SteerLMError):
            if (found := detect_kind(source)) != kind:
                return f"; this looks like {found} data, which `steerlm data import {found}` reads"
    return ""


def _some(records: Iterator[dict[str, Any]], complaint: str) -> Iterator[dict[str, Any]]:
    """The records; raises `DataError` after the last one if there was none, so that no empty file is left."""
    record = None
    for record in records:
        yield record
    if record is None:
        raise DataError(complaint)
