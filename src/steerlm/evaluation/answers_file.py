"""Answers that were generated, kept in a file so that no evaluation generates them twice."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from steerlm.evaluation.answers import Answer, Measured
from steerlm.evaluation.asks import Ask, Ways
from steerlm.files import read_records, write_jsonl

if TYPE_CHECKING:
    from steerlm.evaluation.conditions import Condition


class AnswersFile:
    """The answers of conditions, each under a digest of all that they depend on."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._rows: list[dict[str, Any]] = [row for _, row in read_records(path)] if path.is_file() else []

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
        """Keep the answers of a condition: in place of those that depend on something else, and beside the others."""
        given = {_place(ask, condition, prompts) for ask in asks}
        self._rows = [
            row
            for row in self._rows
            if row.get("condition") != name or (row.get("made") == digest and _place_of(row, condition) not in given)
        ]
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
