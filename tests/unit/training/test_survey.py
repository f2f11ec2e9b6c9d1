"""What is counted of the data while they are read."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest

from steerlm.conversation import Conversation, Message
from steerlm.training import survey
from steerlm.training.survey import Survey


def talk(name: str, *answers: Message, system: str = "") -> Conversation:
    return Conversation(name, (Message("user", "Why?"), *answers), system)


def answer(text: str, ratings: dict[str, float], predicted: dict[str, float] | None = None) -> Message:
    return Message("assistant", text, 0, ratings, predicted or {})


def test_counts_and_means() -> None:
    found = Survey.of(
        [
            talk("a", answer("x", {"humor": 1.0, "quality": 4.0}), answer("y", {"humor": 2.0}, {"humor": 0.5})),
            talk("b", answer("z", {}, {"quality": 3.0})),
            talk("c", answer("w", {})),
        ]
    )
    assert (found.conversations, found.responses) == (3, 4)
    assert (found.rated, found.predicted, found.labelled) == (2, 2, 3)
    assert found.mean_ratings == {"humor": 1.5, "quality": 4.0}
    assert [(message.ratings, message.predicted) for message in found.sample] == [
        ({"humor": 1.0, "quality": 4.0}, {}),
        ({"humor": 2.0}, {"humor": 0.5}),
        ({}, {"quality": 3.0}),
    ]
    assert {message.text for message in found.sample} == {""}


def test_who_predicted() -> None:
    by = ["b", None, "a", "b"]
    messages = [Message("assistant", "x", 0, {}, {"humor": 1.0} if name else {}, name) for name in by]
    assert Survey.of([talk("a", *messages)]).annotators == {"a", "b"}


def test_who_predicted_what_is_learnt_from() -> None:
    """One prediction stands beside a rating, one fills in for it."""
    found = talk(
        "a",
        Message("assistant", "x", 0, {"humor": 4.0}, {"humor": 1.0}, "judge"),
        Message("assistant", "y", 0, {"humor": 4.0}, {"humor": 1.0, "quality": 2.0}, "filler"),
    )
    for labels, annotators in (
        ("predicted", ["filler", "judge"]),
        ("ratings-first", ["filler"]),
        ("ratings", list[str]()),
    ):
        survey = Survey(labels=labels)
        survey.add(found)
        assert survey.annotators_after([]) == annotators
        assert survey.annotators_after(["a", "filler"]) == sorted({"a", "filler", *annotators})
        assert survey.annotators_after(None) is None


def test_one_that_is_not_named_is_not_known() -> None:
    assert Survey.of([talk("a", answer("x", {}, {"humor": 1.0}))]).annotators_after([]) is None


def test_where_conversations_come_from() -> None:
    talks = [replace(talk(str(k), answer("x", {})), source=name) for k, name in enumerate(["b", "", "a/c", "b"])]
    assert Survey.of(talks).sources == {"b", "a/c"}


def test_names_are_noted_up_to_a_number(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(survey, "_NAMES", 2)
    assert Survey.of(replace(talk(str(k)), source=str(k)) for k in range(5)).sources == {"0", "1"}


def test_nothing_was_seen() -> None:
    found = Survey()
    assert (found.commonest_system, found.mean_ratings, found.sample) == ("", {}, [])


def test_the_commonest_system_text_and_of_equally_common_ones_the_first() -> None:
    systems = ["Be kind.", "", "Be brief.", "Be brief.", ""]
    assert Survey.of(talk(str(k), system=text) for k, text in enumerate(systems)).commonest_system == ""
    assert Survey.of(talk(str(k), system=text) for k, text in enumerate(systems[:4])).commonest_system == "Be brief."


def test_system_texts_are_counted_up_to_a_number_of_different_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(survey, "_SYSTEMS", 2)
    systems = ["one", "two", "three", "three", "three", "two"]
    assert Survey.of(talk(str(k), system=text) for k, text in enumerate(systems)).commonest_system == "two"


def test_each_response_is_in_the_sample_with_the_same_probability(monkeypatch: pytest.MonkeyPatch) -> None:
    """5 of 20 responses, 2,000 times: each is drawn 500 times with a standard deviation of 19.4."""
    monkeypatch.setattr(survey, "_SAMPLE", 5)
    talks = [talk(str(k), answer("", {"humor": float(k)})) for k in range(20)]
    drawn: Counter[float] = Counter()
    for seed in range(2000):
        found = Survey.of(talks, seed)
        assert len(found.sample) == 5
        drawn.update(message.ratings["humor"] for message in found.sample)
    assert len(drawn) == 20
    assert all(abs(count - 500) < 5 * 19.4 for count in drawn.values())


def test_the_sample_repeats_with_the_seed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(survey, "_SAMPLE", 5)
    talks = [talk(str(k), answer("", {"humor": float(k)})) for k in range(50)]
    assert Survey.of(talks, 3).sample == Survey.of(talks, 3).sample
    assert Survey.of(talks, 3).sample != Survey.of(talks, 4).sample
