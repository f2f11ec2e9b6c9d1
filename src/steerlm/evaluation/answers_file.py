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
            (condition.key(_ask(row)), row["prompt_text"]): Answer(row["text"], row["tokens"], row["cut"])
            for row in self._rows
            if row.get("made") == digest
        }
        return {
            key: kept[key, words]
            for ask in asks
            if ((key := condition.key(ask)), (words := prompts[ask.prompt][ask.paraphrase])) in kept
        }

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
        given = {(condition.key(ask), prompts[ask.prompt][ask.paraphrase]) for ask in asks}
        self._rows = [
            row
            for row in self._rows
            if row.get("condition") != name
            or (row.get("made") == digest and (condition.key(_ask(row)), row["prompt_text"]) not in given)
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
            (condition.key(ask), prompts[ask.prompt][ask.paraphrase]): {
                name: float(column[number]) for name, column in measured.columns.items()
            }
            for number, ask in enumerate(measured.asks)
        }
        for row in self._rows:
            if row.get("made") == digest:
                row["measured"] = found.get((condition.key(_ask(row)), row["prompt_text"]))
        write_jsonl(self.path, self._rows)


def _ask(row: Mapping[str, Any]) -> Ask:
    return Ask(row["prompt"], tuple((name, level) for name, level in row["asked"]), row["paraphrase"])


def digest_of(*parts: Any) -> str:
    """A digest of plain data."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]
