"""Imports of hand-made records, whose books are checked every time."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from steerlm.attributes import STEERLM, Schema
from steerlm.conversation import Conversation
from steerlm.files import write_jsonl
from steerlm.sources import Imported, ImportOptions, import_conversations

Load = Callable[..., Imported]


@pytest.fixture
def load(tmp_path: Path) -> Load:
    """`load(kind, records, schema=STEERLM, **options)`: import records through a file.

    Every import must balance its books, give unique ids and conversations that our own form can hold.
    """

    def _load(kind: str, records: list[Any], schema: Schema = STEERLM, **options: Any) -> Imported:
        path = tmp_path / "in.jsonl"
        write_jsonl(path, records)
        imported = import_conversations(kind, path, ImportOptions(**options), schema)
        report = imported.report
        for unit in ("messages", "ratings"):
            left_out = sum(report.left_out.get(unit, {}).values())
            assert report.read[unit] == report.kept[unit] + report.joined[unit] + left_out, (unit, report)
        ids = [conversation.id for conversation in imported.conversations]
        assert len(ids) == len(set(ids))
        for conversation in imported.conversations:
            assert Conversation.from_dict(conversation.to_dict(), schema) == conversation
        return imported

    return _load
