"""HelpSteer's rows become one conversation a prompt."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from steerlm.dialects import NEMO_SYSTEM
from steerlm.errors import DataError
from steerlm.sources import Imported

Load = Callable[..., Imported]


def row(prompt: str, response: str, **ratings: Any) -> dict[str, Any]:
    return {"prompt": prompt, "response": response, **ratings}


def test_rows_with_the_same_prompt_share_it_wherever_they_stand(load: Load) -> None:
    imported = load(
        "helpsteer",
        [row("p", "one", helpfulness=3, verbosity=0), row("q", "two", coherence=4), row("p", "three", helpfulness=0)],
    )
    first, second = imported.conversations
    assert [(item.role, item.text, item.parent, dict(item.ratings)) for item in first.messages] == [
        ("user", "p", None, {}),
        ("assistant", "one", 0, {"helpfulness": 3.0, "verbosity": 0.0}),
        ("assistant", "three", 0, {"helpfulness": 0.0}),
    ]
    assert [item.text for item in second.messages] == ["q", "two"]
    assert (first.system, first.source) == (NEMO_SYSTEM, "helpsteer")
    assert imported.report.joined == {"messages": 1}


def test_ids_depend_on_the_prompt_alone(load: Load) -> None:
    rows = [row("p", "one"), row("q", "two"), row("r", "three")]
    before = {item.messages[0].text: item.id for item in load("helpsteer", rows).conversations}
    after = {item.messages[0].text: item.id for item in load("helpsteer", [*rows[::-1], row("p", "x")]).conversations}
    assert before == after
    assert len(set(before.values())) == 3


def test_a_response_that_was_rated_twice_counts_twice(load: Load) -> None:
    rows = [row("p", "same", helpfulness=3), row("p", "same", helpfulness=3), row("p", "same", helpfulness=1)]
    [conversation] = load("helpsteer", rows).conversations
    assert [item.ratings.get("helpfulness") for item in conversation.messages[1:]] == [3.0, 3.0, 1.0]


def test_prompts_of_several_turns_become_turns(load: Load) -> None:
    start = "hi\n<extra_id_1>Assistant\nhello"
    rows = [
        row(f"{start}\n<extra_id_1>User\nand now?", "well", helpfulness=2),
        row(f"{start}\n<extra_id_1>User\nor else?", "hm", helpfulness=1),
        row("hi", "hello", helpfulness=4),
    ]
    imported = load("helpsteer", rows)
    [conversation] = imported.conversations
    assert [(item.role, item.text, item.parent) for item in conversation.messages] == [
        ("user", "hi", None),
        ("assistant", "hello", 0),
        ("user", "and now?", 1),
        ("assistant", "well", 2),
        ("user", "or else?", 1),
        ("assistant", "hm", 4),
    ]
    # The last row rates the turn that the first two have as context.
    assert conversation.messages[1].ratings == {"helpfulness": 4.0}
    # Rated once more, it is a response of its own, as everywhere.
    [conversation] = load("helpsteer", [*rows, rows[-1]]).conversations
    assert [item.text for item in conversation.messages if item.parent == 0] == ["hello", "hello"]


def test_attributes_that_are_not_asked_for_are_counted(load: Load) -> None:
    imported = load("helpsteer", [row("p", "r", helpfulness=3, verbosity=1)], attributes=("verbosity",))
    assert imported.conversations[0].messages[1].ratings == {"verbosity": 1.0}
    assert imported.report.left_out["ratings"] == {"of attributes not taken": 1}


@pytest.mark.parametrize(
    ("bad", "complaint"),
    [
        ({"prompt": "p"}, r"line 2: response is missing.*HelpSteer's columns"),
        ({"response": "r"}, r"line 2: prompt is missing"),
        (row("p", "r", helpfulness=5), r"line 2: helpfulness=5 is outside 0\.\.4"),
        (row("p", "r", helpfulness="3"), r"helpfulness='3' is not a number"),
        ({"prompt": "p", "response_1": "a", "response_2": "b"}, r"compare two responses and rate none"),
        (row("p\n<extra_id_1>Assistant\nx", "r"), r"ends with a turn of the assistant"),
    ],
)
def test_faults_say_where_and_what(load: Load, bad: dict[str, Any], complaint: str) -> None:
    rows = [row("p", "one", helpfulness=3), bad]
    with pytest.raises(DataError, match=complaint):
        load("helpsteer", rows)
    imported = load("helpsteer", rows, skip_faulty=True)
    assert imported.report.left_out["records"] == {"faulty": 1}
    assert imported.report.kept["messages"] == 2
