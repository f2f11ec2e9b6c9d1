"""What a step is made of, assumed or measured."""

from __future__ import annotations

from pathlib import Path

import pytest

from steerlm.attributes import STEERLM
from steerlm.conversation import Conversation, Message
from steerlm.errors import DataError
from steerlm.files import write_conversations
from steerlm.models.load import new_model
from steerlm.planning.workload import Workload, find_workload
from steerlm.training.config import AttributeSettings, PolicySettings

WORKLOAD = Workload(sizes=(100, 300), trained=0.5, seen=40, source="test", conversations=10)


def test_a_step_of_conversations_or_of_tokens() -> None:
    assert WORKLOAD.step(PolicySettings(batch_conversations=3)) == [100, 300, 100]
    assert WORKLOAD.step(PolicySettings(batch_tokens=800)) == [100, 300, 100, 300]
    assert WORKLOAD.step(PolicySettings(batch_tokens=10)) == [100]


def test_steps_are_passes_over_the_data() -> None:
    assert WORKLOAD.steps(PolicySettings(batch_conversations=4, epochs=2)) == 5
    assert WORKLOAD.steps(PolicySettings(batch_conversations=4, epochs=2, max_steps=3)) == 3
    unknown = Workload((100,), 0.5, 40, "test")
    assert unknown.steps(PolicySettings(max_steps=800)) == 800
    assert unknown.steps(PolicySettings()) is None


def test_a_given_size_scales_all() -> None:
    found = WORKLOAD.scaled(1000)
    assert found.sizes == (500, 1500)
    assert found.seen == 200
    assert found.conversations == 10


def test_without_data_conversations_are_those_of_open_assistant() -> None:
    assert find_workload(PolicySettings()).tokens == pytest.approx(1755, rel=0.02)
    assert find_workload(AttributeSettings(data=[Path("nowhere.jsonl")])).tokens == pytest.approx(1428, rel=0.02)


def test_a_foil_repeats_the_trained_part() -> None:
    """Of 100 tokens 50 are trained: with their foil it is 100 of 150, and twice that in the larger conversation."""
    found = WORKLOAD.with_foils()
    assert found.sizes == (150, 450)
    assert found.trained == pytest.approx(100 / 150)
    assert found.source == "test, each response twice for the contrast"


def test_the_contrast_needs_more_tokens_of_data_that_are_not_there_too() -> None:
    assert find_workload(PolicySettings(contrast=0.5)).tokens == pytest.approx(1.7 * 1755, rel=0.02)


def test_data_at_hand_are_measured(chatml_base: Path, tmp_path: Path) -> None:
    """Two answers to one prompt: each of its tokens is in the tree once, and is seen by both."""
    ratings = {"quality": 4.0}
    messages = (
        Message("user", "Why is the sea salty?", None),
        Message("assistant", "Rivers carry salt.", 0, ratings),
        Message("assistant", "Because the land never waves back.", 0, ratings),
    )
    conversations = [Conversation(f"c{number}", messages) for number in range(6)]
    write_conversations(tmp_path / "data.jsonl", conversations)
    settings = PolicySettings(
        data=[tmp_path / "data.jsonl"], base=str(chatml_base), labels="ratings-first", validation_fraction=0.0
    )
    found = find_workload(settings)
    renderer = new_model("policy", chatml_base, STEERLM.only({"quality"})).renderer
    tree = renderer.tree(conversations[0], "policy", {1: ratings, 2: ratings})
    prompt, first, second = (len(segment.ids) for segment in tree.segments)
    assert found.sizes == (tree.size,) * 6
    assert found.conversations == 6
    assert found.source == "measured on 6 conversations of the data"
    seen = sum(range(1, prompt + 1)) + sum(prompt + place for size in (first, second) for place in range(1, size + 1))
    assert found.seen == pytest.approx(seen / tree.size)
    assert found.trained == pytest.approx(sum(len(segment.trained()) for segment in tree.segments[1:]) / tree.size)


def test_data_that_cannot_be_trained_on(chatml_base: Path, tmp_path: Path) -> None:
    bare = Conversation("c", (Message("user", "Why?", None), Message("assistant", "So.", 0)))
    write_conversations(tmp_path / "data.jsonl", [bare])
    with pytest.raises(DataError, match="no response carries labels"):
        find_workload(PolicySettings(data=[tmp_path / "data.jsonl"], base=str(chatml_base), validation_fraction=0.0))


def test_a_tokenizer_that_is_not_there_is_told_of(tmp_path: Path) -> None:
    (tmp_path / "data.jsonl").touch()
    found = find_workload(PolicySettings(data=[tmp_path / "data.jsonl"], base=str(tmp_path / "none")))
    assert found.source.startswith("assumed, as Open Assistant's: cannot load the model")
