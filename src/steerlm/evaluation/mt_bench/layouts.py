"""FastChat's rows: answers, single judgments and pairwise judgments, read with their faults named.

Rows are kept as they are found, but that `RowFile` spells the numbers of questions as numbers; what we add to our own
(tokens used, attribute values) stands under further keys, which other programs pass over.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self, TypeVar

from steerlm.errors import DataError
from steerlm.files import read_records

Row = Mapping[str, Any]
R = TypeVar("R")
TURNS = (1, 2)
AT = "@"
"""What stands between a model's name and the setting that it was asked at."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What a model answered to both turns of a question; of several choices the first, as FastChat judges it."""

    question_id: int
    model: str
    turns: tuple[str, ...]
    row: Row

    @classmethod
    def from_row(cls, row: Row) -> Self:
        """Raises `KeyError`, `TypeError`, `IndexError` or `ValueError` where it is no such row; so do the others."""
        turns = tuple(_text(turn) for turn in row["choices"][0]["turns"])
        return cls(int(row["question_id"]), _text(row["model_id"]), turns, row)


@dataclass(frozen=True, slots=True)
class SingleJudgment:
    """A grade of one answer. `score` is what the row records, -1 where the judge gave none."""

    question_id: int
    model: str
    judge: str
    prompt: str
    turn: int
    score: float
    text: str
    row: Row

    @property
    def key(self) -> tuple[object, ...]:
        """What it is a judgment of, and by whom."""
        return self.judge, self.question_id, self.turn, self.model

    @classmethod
    def from_row(cls, row: Row) -> Self:
        judge, prompt = row["judge"]
        score = row.get("score")
        return cls(
            int(row["question_id"]),
            _text(row["model"]),
            _text(judge),
            _text(prompt),
            _turn(row.get("turn", 1)),
            -1.0 if score is None else float(score),
            _text(row.get("judgment") or ""),
            row,
        )


@dataclass(frozen=True, slots=True)
class PairJudgment:
    """A comparison of two answers in both orders. Winners are model_1, model_2, tie or error."""

    question_id: int
    models: tuple[str, str]
    judge: str
    prompt: str
    turn: int
    winners: tuple[str, str]
    texts: tuple[str, str]
    row: Row

    @property
    def key(self) -> tuple[object, ...]:
        """What it is a judgment of, and by whom; both answers came first once, so that the names' order is nothing."""
        return self.judge, self.question_id, self.turn, *sorted(self.models)

    @classmethod
    def from_row(cls, row: Row) -> Self:
        judge, prompt = row["judge"]
        return cls(
            int(row["question_id"]),
            (_text(row["model_1"]), _text(row["model_2"])),
            _text(judge),
            _text(prompt),
            _turn(row.get("turn", 1)),
            (_text(row["g1_winner"]), _text(row["g2_winner"])),
            (_text(row.get("g1_judgment") or ""), _text(row.get("g2_judgment") or "")),
            row,
        )


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{value!r} is no text")
    return value


def _turn(value: Any) -> int:
    if value not in TURNS:
        raise ValueError(f"turn {value!r} is neither 1 nor 2")
    return int(value)


def parse_row(path: Path, line: int, row: Row, kind: Callable[[Row], R]) -> R:
    """A row of a file as `kind` reads it. Raises `DataError` with the place and the fault."""
    try:
        return kind(row)
    except KeyError as error:
        fault = f"{error.args[0]!r} is missing"
    except IndexError:
        fault = "there is no choice in it"
    except (TypeError, ValueError) as error:
        fault = str(error)
    raise DataError(f"{path}: line {line}: not a row of FastChat's layout: {fault}")


def read_answers(path: Path) -> list[Answer]:
    """The answers of a file; of several to one question the last, as FastChat takes it."""
    found = {}
    for line, row in read_records(path):
        answer = parse_row(path, line, row, Answer.from_row)
        found[answer.question_id] = answer
    return list(found.values())


def read_judgments(paths: Iterable[Path]) -> tuple[list[SingleJudgment], list[PairJudgment]]:
    """All single and all pairwise judgments of the files, in order; a file may hold both."""
    singles, pairs = [], []
    for path in paths:
        for line, row in read_records(path):
            if "g1_winner" in row or "model_1" in row:
                pairs.append(parse_row(path, line, row, PairJudgment.from_row))
            else:
                singles.append(parse_row(path, line, row, SingleJudgment.from_row))
    return singles, pairs


def file_name(model: str) -> str:
    """The name of a model's file: slashes of hub ids do not make folders."""
    return model.strip("/").replace("/", "--")


def base_model(name: str) -> str:
    """A model's name without the setting that it was asked at."""
    return name.partition(AT)[0]
