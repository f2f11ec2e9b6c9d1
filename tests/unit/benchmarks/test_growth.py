"""The benchmark of growing data."""

from __future__ import annotations

from pathlib import Path

from benchmarks.growth import GrowthSettings, conversations, grow
from steerlm.files import write_conversations


def test_conversations_differ() -> None:
    made = list(conversations(20))
    assert len({c.id for c in made}) == len({c.messages[0].text for c in made}) == 20
    assert [c.to_dict() for c in made] == [c.to_dict() for c in conversations(20)]


def test_growth_of_a_small_file(chatml_base: Path, tmp_path: Path) -> None:
    write_conversations(tmp_path / "data.jsonl", conversations(12))
    settings = GrowthSettings(steps=3, batch_tokens=256)
    result = grow(settings, tmp_path / "data.jsonl", 12, chatml_base, tmp_path / "model")
    assert result.conversations == 12
    assert result.startup_read_mb > result.file_mb
    assert result.tokens_per_second > 0
    assert result.peak_mb >= result.resident_mb > 0
