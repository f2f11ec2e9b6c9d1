"""What a value is in words."""

from __future__ import annotations

import pytest

from steerlm.attributes import STEERLM, Attribute, Schema
from steerlm.evaluation.words import in_words


@pytest.mark.parametrize(
    ("attribute", "lowest", "highest"),
    [
        ("quality", "very bad", "best"),
        ("toxicity", "polite", "as rude and offensive as you can"),
        ("humor", "serious", "joking"),
        ("creativity", "plainest", "unusual"),
        ("helpfulness", "not help", "as helpful as you can"),
        ("correctness", "all facts wrong", "entirely correct"),
        ("coherence", "without any order", "as clearly"),
        ("complexity", "simplest", "expert"),
        ("verbosity", "short", "detail"),
    ],
)
def test_the_ends_of_a_scale_ask_for_opposites(attribute: str, lowest: str, highest: str) -> None:
    low, *between, high = (in_words(STEERLM, {attribute: level}) for level in range(5))
    assert lowest in low
    assert highest in high
    assert not any(lowest in text for text in (*between, high))
    assert not any(highest in text for text in (low, *between))
    assert len({low, *between, high}) == 5


def test_each_level_of_verbosity_asks_for_more() -> None:
    lengths = ["one short sentence", "two or three sentences", "a paragraph", "several paragraphs", "many paragraphs"]
    for level, length in enumerate(lengths):
        assert length in in_words(STEERLM, {"verbosity": level})


@pytest.mark.parametrize(
    ("low", "high", "steps"),
    [(0, 9, [0, 0, 1, 1, 2, 2, 3, 3, 4, 4]), (1, 5, [0, 1, 2, 3, 4]), (-1, 1, [0, 2, 4]), (0, 1, [0, 4])],
)
def test_another_scale_is_asked_for_by_the_nearest_step(low: int, high: int, steps: list[int]) -> None:
    """Of 0..9 the level 2 is at 8 / 9 of the five steps' scale, and 3 at 12 / 9: both are nearest to its 1."""
    scale = Schema((Attribute("verbosity", low, high, high),))
    found = [in_words(scale, {"verbosity": level}) for level in scale["verbosity"].levels]
    assert found == [in_words(STEERLM, {"verbosity": step}) for step in steps]


def test_an_attribute_without_sentences_is_asked_for_by_number() -> None:
    own = Schema((Attribute("wit", -2, 7, description="quickness of mind"), Attribute("warmth")))
    wit, warmth = in_words(own, {"wit": 5}), in_words(own, {"warmth": 1})
    assert wit == "On a scale of wit (quickness of mind) from -2 to 7, answer at 5."
    assert warmth == "On a scale of warmth from 0 to 4, answer at 1."
    assert in_words(own, {"warmth": 1, "wit": 5}) == f"{warmth} {wit}"
