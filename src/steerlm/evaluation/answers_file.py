"""Answers that were generated, kept in a file so that no evaluation generates them twice."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from steerlm.errors import DataError
from steerlm.evaluation.answers import Answer, Measured
from steerlm.evaluation.asks import Ask, Ways
from steerlm.files import open_locked, read_records, write_jsonl

if TYPE_CHECKING:
    from steerlm.evaluation.conditions import Condition


class AnswersFile:
    """The answers of conditions, each under a digest of all that they depend on; held by one process at a time.

    Raises `DataError` where another process holds the file, or it is no JSONL.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        # A file of its own: that of the answers is replaced as a whole.
        self._lock = path.with_name(f".{path.name}.lock")
        stream = open_locked(self._lock)
        if stream is None:
            raise DataError(f"{path}: another process is writing this file; wait for it, or choose another --out")
        self._held = stream
        try:
            self.rows: list[dict[str, Any]] = [row for _, row in read_records(path)] if path.is_file() else []
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Let others have the file."""
        self._lock.unlink(missing_ok=True)
        self._held.close()

    def of(self, made: str, name: str, condition: Condition, prompts: Sequence[Ways]) -> ConditionAnswers:
        """Those of the condition called `name` to these prompts; `made` is a digest of all that they depend on."""
        return ConditionAnswers(self, made, name, condition, prompts)

    def write(self) -> None:
        """Write all rows, in place of the file that is there."""
        write_jsonl(self.path, self.rows)


@dataclass(frozen=True)
class ConditionAnswers:
    """The answers of one condition in a file."""

    file: AnswersFile
    made: str
    name: str
    condition: Condition
    prompts: Sequence[Ways]

    def get(self, asks: Sequence[Ask]) -> dict[Hashable, Answer]:
        """Those of these asks that are there, to prompts in the same words."""
        kept = {
            self._place_of(row): Answer(row["text"], row["tokens"], row["cut"])
            for row in self.file.rows
            if row.get("made") == self.made
        }
        return {self.condition.key(ask): kept[place] for ask in asks if (place := self._place(ask)) in kept}

    def add(self, asks: Sequence[Ask], answers: Mapping[Hashable, Answer]) -> None:
        """Keep some answers, beside all others, for a run that goes on where this one was stopped."""
        self._enter(asks, answers)
        self.file.write()

    def complete(self, asks: Sequence[Ask], answers: Mapping[Hashable, Answer]) -> None:
        """Keep all answers: in place of those of the condition that depend on something else, and beside the others."""
        self.file.rows = [
            row for row in self.file.rows if row.get("condition") != self.name or row.get("made") == self.made
        ]
        self._enter(asks, answers)
        self.file.write()

    def _enter(self, asks: Sequence[Ask], answers: Mapping[Hashable, Answer]) -> None:
        entered = {self._place(ask) for ask in asks}
        self.file.rows = [
            row for row in self.file.rows if row.get("made") != self.made or self._place_of(row) not in entered
        ]
        for ask in dict.fromkeys(asks):
            key, words = self._place(ask)
            answer = answers[key]
            self.file.rows.append(
                {
                    "condition": self.name,
                    "made": self.made,
                    "prompt": ask.prompt,
                    "prompt_text": words,
                    "paraphrase": ask.paraphrase,
                    "asked": [list(pair) for pair in ask.named],
                    "text": answer.text,
                    "tokens": answer.tokens,
                    "cut": answer.cut,
                }
            )

    def note(self, measured: Measured) -> None:
        """Write beside the answers what was measured in each; null where nothing was this time."""
        found = {
            self._place(ask): {name: float(column[number]) for name, column in measured.columns.items()}
            for number, ask in enumerate(measured.asks)
        }
        for row in self.file.rows:
            if row.get("made") == self.made:
                row["measured"] = found.get(self._place_of(row))
        self.file.write()

    def _place(self, ask: Ask) -> tuple[Hashable, str]:
        """What an answer is kept by: what it depends on, and the words of its prompt."""
        return self.condition.key(ask), self.prompts[ask.prompt][ask.paraphrase]

    def _place_of(self, row: Mapping[str, Any]) -> tuple[Hashable, str]:
        asked = tuple((name, level) for name, level in row["asked"])
        return self.condition.key(Ask(row["prompt"], asked, row["paraphrase"])), row["prompt_text"]


def digest_of(*parts: Any) -> str:
    """A digest of plain data."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]
