"""Answers that were generated, kept in a file so that no evaluation generates them twice."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from steerlm.evaluation.answers import Answer
from steerlm.evaluation.asks import Ask
from steerlm.files import read_records, write_jsonl

if TYPE_CHECKING:
    from steerlm.evaluation.conditions import Condition


class AnswersFile:
    """The answers of conditions, each under a digest of all that they depend on."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._rows: list[dict[str, Any]] = [row for _, row in read_records(path)] if path.is_file() else []

    def get(self, digest: str, condition: Condition, asks: Sequence[Ask]) -> dict[Hashable, Answer]:
        """Those of these asks that are there."""
        kept = {
            (row["prompt"], row["paraphrase"], tuple((name, level) for name, level in row["asked"])): Answer(
                row["text"], row["tokens"], row["cut"]
            )
            for row in self._rows
            if row.get("made") == digest
        }
        return {
            condition.key(ask): kept[ask.prompt, ask.paraphrase, ask.named]
            for ask in asks
            if (ask.prompt, ask.paraphrase, ask.named) in kept
        }

    def put(
        self,
        digest: str,
        name: str,
        condition: Condition,
        asks: Sequence[Ask],
        prompts: Sequence[str],
        answers: Mapping[Hashable, Answer],
    ) -> None:
        """Keep the answers of a condition in place of what it had before."""
        self._rows = [row for row in self._rows if row.get("condition") != name]
        for ask in dict.fromkeys(asks):
            answer = answers[condition.key(ask)]
            self._rows.append(
                {
                    "condition": name,
                    "made": digest,
                    "prompt": ask.prompt,
                    "prompt_text": prompts[ask.prompt],
                    "paraphrase": ask.paraphrase,
                    "asked": [list(pair) for pair in ask.named],
                    "text": answer.text,
                    "tokens": answer.tokens,
                    "cut": answer.cut,
                }
            )
        write_jsonl(self.path, self._rows)


def digest_of(*parts: Any) -> str:
    """A digest of plain data."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]
