"""`steerlm data stats|check|show`: what is in a conversation file, and what is wrong with it."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

from cyclopts import Parameter

from steerlm.attributes import Schema
from steerlm.chat_template import Task
from steerlm.cli.data_views import (
    conversation_view,
    print_json,
    printable,
    schema_of,
    statistics_view,
    stdout,
    token_view,
)
from steerlm.conversation import Conversation, LabelsFrom
from steerlm.dialects import DIALECTS, Renderer, detect_dialect, level_tokens
from steerlm.errors import ConfigError, DataError
from steerlm.files import read_conversations, read_rows, row_faults, row_id
from steerlm.models.directory import FILE, ModelInfo
from steerlm.sources.statistics import ValuesFrom, statistics

DialectName = Literal["nemo", "chatml", "llama3"]
_SHOWN_ALIKE = 5


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
    attributes = schema_of(schema)
    if dialect is not None and tokenizer is None:
        raise ConfigError("--dialect needs --tokenizer; name a model")
    renderer = renderer_for(tokenizer, dialect, attributes) if tokenizer is not None else None
    found = statistics(read_conversations(file, attributes), attributes, renderer, values)
    if not found.conversations:
        raise DataError(f"{file}: the file holds no conversations")
    if json_:
        print_json({"file": str(file), **found.to_dict()})
    else:
        stdout().print(statistics_view(found))
        if renderer is None:
            stdout().print("In tokens, with what trees save: --tokenizer MODEL, such as smollm2", soft_wrap=True)


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
    found = check_file(file, schema_of(schema))
    if json_:
        print_json({"file": str(file), "good": found.good, "faulty": len(found.faults), "faults": found.faults})
    else:
        _print_faults(file, found)
    if found.faults:
        advice = (
            f"correct them, or leave them out with `steerlm data import jsonl {file} --skip-faulty --out GOOD.jsonl`"
        )
        if found.faults[-1]["line"] == 0:
            advice = "correct the file as a whole first: no command can read it to its end"
        raise DataError(f"{file}: {len(found.faults)} faulty; {advice}")


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
    attributes = schema_of(schema)
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
            found.faults.append({"line": row.line, "conversation": row_id(row), "messages": faults})
    except DataError as error:
        # A torn archive ends the reading, but not before the faults above it are told.
        found.faults.append({"line": 0, "conversation": None, "messages": [str(error).removeprefix(f"{file}: ")]})
    if not found.good and not found.faults:
        raise DataError(f"{file}: the file holds no conversations")
    return found


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
