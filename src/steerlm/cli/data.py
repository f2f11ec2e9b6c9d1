"""`steerlm data import|export|stats|check|show`: conversation files from other people's data, and a look into them."""

from __future__ import annotations

import contextlib
import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

from cyclopts import App, Parameter

from steerlm.attributes import STEERLM, Schema
from steerlm.chat_template import Task
from steerlm.cli.data_views import LabelsFrom, conversation_view, printable, statistics_view, stdout, token_view
from steerlm.conversation import Conversation
from steerlm.dialects import DIALECTS, Renderer, detect_dialect, level_tokens
from steerlm.errors import ConfigError, DataError, SteerLMError
from steerlm.files import read_conversations, read_rows, row_faults, write_conversations, write_jsonl
from steerlm.models.directory import FILE, ModelInfo
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
from steerlm.sources.statistics import ValuesFrom, statistics

DialectName = Literal["nemo", "chatml", "llama3"]
ExportKind = Literal["nemo-sft", "nemo-regression"]
_SHOWN_ALIKE = 5

data_app = App(
    name="data",
    help="Import rated conversations from other formats, check them and look into them.",
    default_parameter=Parameter(negative=()),
)


@data_app.command(name="import")
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
        imported = import_conversations(kind, sources, options, _schema(schema))
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
        _print_json({**imported.report.to_dict(), "written": counts})
        return
    stdout().print(str(imported.report), soft_wrap=True)
    for name, conversations in written.items():
        stdout().print(f"wrote {len(conversations)} conversations to {name}", soft_wrap=True)


@data_app.command(name="export")
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
    attributes = _schema(schema)
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
        _print_json({**report.to_dict(), "written": str(out)})
    else:
        stdout().print(f"{report}\nto {out}", soft_wrap=True)


@data_app.command(name="stats")
def stats_command(
    file: Path,
    /,
    *,
    tokenizer: str | None = None,
    dialect: DialectName | None = None,
    values: ValuesFrom = "ratings",
    schema: Path | None = None,
    json_: Annotated[bool, Parameter(name="--json")] = False,
) -> None:
    """Count and measure the conversations of a file: ratings, their correlations, lengths.

    Parameters
    ----------
    file
        Conversation file.
    tokenizer
        Measure in tokens too, as this model would be trained: a Hugging Face id, a path, or smollm2.
    dialect
        Prompt format for --tokenizer; without it, that of the model.
    values
        Describe people's ratings or the attribute model's predictions.
    schema
        YAML file with the attributes; without one, the nine of SteerLM.
    json_
        Print JSON.
    """
    attributes = _schema(schema)
    if dialect is not None and tokenizer is None:
        raise ConfigError("--dialect needs --tokenizer; name a model")
    renderer = renderer_for(tokenizer, dialect, attributes) if tokenizer is not None else None
    found = statistics(read_conversations(file, attributes), attributes, renderer, values)
    if not found.conversations:
        raise DataError(f"{file}: the file holds no conversations")
    if json_:
        _print_json({"file": str(file), **found.to_dict()})
    else:
        stdout().print(statistics_view(found))


@data_app.command(name="check")
def check_command(
    file: Path,
    /,
    *,
    schema: Path | None = None,
    json_: Annotated[bool, Parameter(name="--json")] = False,
) -> None:
    """Find everything wrong with a conversation file, line by line. Exit code 2 where there is anything.

    Parameters
    ----------
    file
        Conversation file.
    schema
        YAML file with the attributes; without one, the nine of SteerLM.
    json_
        Print JSON.
    """
    found = check_file(file, _schema(schema))
    if json_:
        _print_json({"file": str(file), "good": found.good, "faulty": len(found.faults), "faults": found.faults})
    else:
        _print_faults(file, found)
    if found.faults:
        raise DataError(
            f"{file}: {len(found.faults)} faulty; correct them, or leave them out with "
            f"`steerlm data import jsonl {file} --skip-faulty --out GOOD.jsonl`"
        )


def _print_faults(file: Path, found: Checked) -> None:
    """Every fault with its place; of many that say the same, the first few and their number."""
    alike: Counter[str] = Counter()
    for item in found.faults:
        line = f"{file}:{item['line']}: " if item["line"] else f"{file}: "
        about = f"conversation {item['conversation']!r}: " if item["conversation"] is not None else ""
        for fault in item["messages"]:
            alike[f"{about}{fault}"] += 1
            if alike[f"{about}{fault}"] <= _SHOWN_ALIKE:
                stdout().print(printable(f"{line}{about}{fault}"), soft_wrap=True)
    for text, count in alike.items():
        if count > _SHOWN_ALIKE:
            stdout().print(printable(f"{file}: {count - _SHOWN_ALIKE} more lines: {text}"), soft_wrap=True)
    stdout().print(f"{found.good} good, {len(found.faults)} faulty")


@data_app.command(name="show")
def show_command(
    file: Path,
    /,
    *,
    id_: Annotated[str | None, Parameter(name="--id")] = None,
    index: int | None = None,
    tokens: bool = False,
    tokenizer: str = "smollm2",
    dialect: DialectName | None = None,
    task: Task | None = None,
    labels: LabelsFrom = "ratings-first",
    schema: Path | None = None,
) -> None:
    """Show one conversation as a tree of messages with their ratings, or as the tokens that a model sees.

    Parameters
    ----------
    file
        Conversation file.
    id_
        Id of the conversation; without it and --index, the first one.
    index
        Position of the conversation in the file, from 0.
    tokens
        Show tokens, coloured by role; those that the loss falls on stand in ⟦ ⟧.
    tokenizer
        Whose tokens: a Hugging Face id, a path of a base or a trained model, or smollm2.
    dialect
        Prompt format; without it, that of the model.
    task
        Training of the policy, or of the attribute model (score); without it, what the model is for, else policy.
    labels
        Where label lines come from: people, the attribute model, or people first and the model for the rest.
    schema
        YAML file with the attributes; without one, the nine of SteerLM.
    """
    attributes = _schema(schema)
    conversation = _find(file, id_, index, attributes)
    if not tokens:
        stdout().print(conversation_view(conversation))
        return
    info = _model_info(tokenizer)
    wanted: Task = task or ("score" if info is not None and info.kind == "attribute-model" else "policy")
    stdout().print(token_view(conversation, renderer_for(tokenizer, dialect, attributes), wanted, labels))


@dataclass
class Checked:
    """Faults of a file: `line` (0 where the file as a whole is meant), `conversation` (its id) and `messages`."""

    good: int = 0
    faults: list[dict[str, Any]] = field(default_factory=list)


def check_file(file: Path, schema: Schema) -> Checked:
    """All faults of a conversation file. Raises `DataError` where there is no such file, or nothing in it."""
    found = Checked()
    seen: dict[str, int] = {}
    if not file.is_file():
        raise DataError(f"{file}: no such file")
    try:
        for row in read_rows(file):
            faults = row_faults(row, schema, seen)
            if not faults:
                found.good += 1
                continue
            name = row.record.get("id") if isinstance(row.record, dict) else None
            found.faults.append({"line": row.line, "conversation": name, "messages": faults})
    except DataError as error:
        # A torn archive ends the reading, but not before the faults above it are told.
        found.faults.append({"line": 0, "conversation": None, "messages": [str(error).removeprefix(f"{file}: ")]})
    if not found.good and not found.faults:
        raise DataError(f"{file}: the file holds no conversations")
    return found


def held_out_name(out: Path) -> Path:
    """`data.jsonl.gz` becomes `data.held-out.jsonl.gz`."""
    stem, dot, suffixes = out.name.partition(".jsonl")
    if not dot:
        stem, suffixes = out.stem, out.suffix
    return out.with_name(f"{stem}.held-out{dot}{suffixes}")


def renderer_for(name: str, dialect: str | None, schema: Schema) -> Renderer:
    """The renderer of a trained model, or the one that training would make from a base model.

    Raises `ConfigError` where a trained model speaks another dialect than the one asked for, `ModelError` where
    there is no such model.
    """
    from steerlm.models.base import load_tokenizer  # with it comes PyTorch, which most of these commands do without

    tokenizer = load_tokenizer(name)
    info = _model_info(name)
    if info is not None:
        if dialect not in (None, info.dialect):
            raise ConfigError(f"{name} was trained with the dialect {info.dialect}; leave --dialect out")
        return Renderer(DIALECTS[info.dialect], tokenizer, info.schema)
    chosen = DIALECTS[dialect or detect_dialect(tokenizer)]
    words = [*chosen.markers, *level_tokens(schema)]
    new = [word for word in words if word not in tokenizer.get_vocab()]
    tokenizer.add_special_tokens({"additional_special_tokens": new}, replace_extra_special_tokens=False)
    return Renderer(chosen, tokenizer, schema)


def _model_info(name: str) -> ModelInfo | None:
    return ModelInfo.load(name) if (Path(name) / FILE).is_file() else None


def _find(file: Path, name: str | None, index: int | None, schema: Schema) -> Conversation:
    if name is not None and index is not None:
        raise ConfigError("--id and --index both name a conversation; give one of them")
    if index is not None and index < 0:
        raise ConfigError(f"--index {index} must be 0 or more")
    wanted = index or 0
    count = 0
    for count, conversation in enumerate(read_conversations(file, schema), start=1):
        if conversation.id == name or (name is None and count - 1 == wanted):
            return conversation
    what = f"no conversation {name!r}" if name is not None else f"no conversation at index {wanted}"
    raise DataError(f"{file}: {what} among its {count}")


def _schema(path: Path | None) -> Schema:
    return Schema.from_yaml(path) if path is not None else STEERLM


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


def _print_json(data: object) -> None:
    print(json.dumps(data, ensure_ascii=False, indent=2))
