"""Pools of unrated answers."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from steerlm.errors import ConfigError, DataError
from steerlm.sources import Imported

Load = Callable[..., Imported]


def test_each_answer_is_a_response_of_its_own_even_where_texts_are_equal(load: Load) -> None:
    records = [
        {"prompt": "p", "responses": [{"model": "m", "text": "same"}, "same", {"text": "other"}]},
        {"prompt": "p", "responses": ["late"]},
    ]
    [conversation] = load("responses", records).conversations
    assert [(item.text, item.parent) for item in conversation.messages] == [
        ("p", None),
        ("same", 0),
        ("same", 0),
        ("other", 0),
        ("late", 0),
    ]
    assert not any(item.ratings for item in conversation.messages)


@pytest.mark.parametrize(
    ("bad", "complaint"),
    [
        ({"prompt": "p", "responses": []}, r"line 1: responses must be a list of at least one answer"),
        ({"prompt": "p", "responses": "r"}, r"responses must be a list, found a string"),
        ({"prompt": "p", "responses": [{"model": "m"}]}, r"response 0: text is missing"),
        ({"prompt": "p", "responses": ["ok", 3]}, r"response 1 must be an object, found a number"),
        ({"responses": ["r"]}, r"prompt is missing"),
    ],
)
def test_faults_say_where_and_what(load: Load, bad: dict[str, object], complaint: str) -> None:
    with pytest.raises(DataError, match=complaint):
        load("responses", [bad])
    # A faulty row leaves nothing behind, not even its good answers.
    assert load("responses", [bad], skip_faulty=True).conversations == ()


def test_options_about_ratings_mean_nothing_here(load: Load) -> None:
    with pytest.raises(ConfigError, match="attributes means nothing for responses data"):
        load("responses", [], attributes=("quality",))
