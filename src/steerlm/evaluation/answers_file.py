"""Answers that were generated, kept in a file so that no evaluation generates them twice."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Hashable, Mapping, Sequence
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
            self._rows: list[dict[str, Any]] = [row for _, row in read_records(path)] if path.is_file() else []
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Let others have the file."""
        self._lock.unlink(missing_ok=True)
        self._held.close()

    def get(
        self, digest: str, condition: Condition, asks: Sequence[Ask], prompts: Sequence[Ways]
    ) -> dict[Hashable, Answer]:
        """Those of these asks that are there, to prompts in the same words."""
        kept = {
            _place_of(row, condition): Answer(row["text"], row["tokens"], row["cut"])
            for row in self._rows
            if row.get("made") == digest
        }
        return {condition.key(ask): kept[place] for ask in asks if (place := _place(ask, condition, prompts)) in kept}

    def put(
        self,
        digest: str,
        name: str,
        condition: Condition,
        asks: Sequence[Ask],
        prompts: Sequence[Ways],
        answers: Mapping[Hashable, Answer],
    ) -> None:
        """Keep all answers of a condition: in place of those that depend on something else, and beside the others."""
        self._rows = [row for row in self._rows if row.get("condition") != name or row.get("made") == digest]
        self.add(digest, name, condition, asks, prompts, answers)

    def add(
        self,
        digest: str,
        name: str,
        condition: Condition,
        asks: Sequence[Ask],
        prompts: Sequence[Ways],
        answers: Mapping[Hashable, Answer],
    ) -> None:
        """Keep some answers of a condition, beside all others, for a run that goes on where this one was stopped."""
        given = {_place(ask, condition, prompts) for ask in asks}
        self._rows = [row for row in self._rows if row.get("made") != digest or _place_of(row, condition) not in given]
        for ask in dict.fromkeys(asks):
            answer = answers[condition.key(ask)]
            self._rows.append(
                {
                    "condition": name,
                    "made": digest,
                    "prompt": ask.prompt,
                    "prompt_text": prompts[ask.prompt][ask.paraphrase],
                    "paraphrase": ask.paraphrase,
                    "asked": [list(pair) for pair in ask.named],
                    "text": answer.text,
                    "tokens": answer.tokens,
                    "cut": answer.cut,
                }
            )
        write_jsonl(self.path, self._rows)

    def note(self, digest: str, condition: Condition, measured: Measured, prompts: Sequence[Ways]) -> None:
        """Write beside the answers under a digest what was measured in each; null where nothing was this time."""
        found = {
            _place(ask, condition, prompts): {name: float(column[number]) for name, column in measured.columns.items()}
            for number, ask in enumerate(measured.asks)
        }
        for row in self._rows:
            if row.get("made") == digest:
                row["measured"] = found.get(_place_of(row, condition))
        write_jsonl(self.path, self._rows)


def _place(ask: Ask, condition: Condition, prompts: Sequence[Ways]) -> tuple[Hashable, str]:
    """What an answer is kept by: what it depends on, and the words of its prompt."""
    return condition.key(ask), prompts[ask.prompt][ask.paraphrase]


def _place_of(row: Mapping[str, Any], condition: Condition) -> tuple[Hashable, str]:
    asked = tuple((name, level) for name, level in row["asked"])
    return condition.key(Ask(row["prompt"], asked, row["paraphrase"])), row["prompt_text"]


def digest_of(*parts: Any) -> str:
    """A digest of plain data."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]
