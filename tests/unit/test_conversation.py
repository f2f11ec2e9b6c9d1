"""Conversations as trees, and every way in which their JSON form can be wrong."""

from __future__ import annotations

import copy
import json
from typing import Any

import pytest

from steerlm.attributes import Attribute, Schema
from steerlm.conversation import Conversation, Message
from steerlm.errors import DataError

#            0 user
#          /        \
#   1 assistant    4 assistant
#      /    \            |
#   2 user  3 user    5 user
#      |               |     |
#   6 assistant     7 asst  8 asst
TREE = Conversation(
    "tree",
    (
        Message("user", "0"),
        Message("assistant", "1", 0),
        Message("user", "2", 1),
        Message("user", "3", 1),
        Message("assistant", "4", 0),
        Message("user", "5", 4),
        Message("assistant", "6", 2),
        Message("assistant", "7", 5),
        Message("assistant", "8", 5),
    ),
)


def test_the_tree_is_navigable() -> None:
    assert TREE.children == ((1, 4), (2, 3), (6,), (), (5,), (7, 8), (), (), ())
    assert TREE.path(6) == (0, 1, 2, 6)
    assert TREE.path(0) == (0,)
    assert TREE.roots == (0,)
    assert TREE.responses == (1, 4, 6, 7, 8)
    assert set(TREE.threads()) == {(0, 1, 2, 6), (0, 1, 3), (0, 4, 5, 7), (0, 4, 5, 8)}
    assert TREE.threads_through == (4, 2, 1, 1, 2, 2, 1, 1, 1)


def test_several_roots_make_a_forest() -> None:
    forest = Conversation("forest", (Message("user", "a"), Message("user", "b"), Message("assistant", "c", 1)))
    assert forest.roots == (0, 1)
    assert list(forest.threads()) == [(0,), (1, 2)]
    assert forest.threads_through == (1, 1, 1)


@pytest.mark.parametrize(
    ("parents", "says"),
    [
        ((0,), "message 0: parent=0 must come before it"),
        ((1, None), "message 0: parent=1 must come before it"),
        ((None, 2, 1), "message 1: parent=2 must come before it"),
        ((None, 7), "message 1: parent=7 must come before it"),
        ((None, -1), "message 1: parent=-1 must come before it"),
        ((None, True), "message 1: parent=True must be the index"),
        ((None, "0"), "message 1: parent='0' must be the index"),
        ((None, 0.0), "message 1: parent=0.0 must be the index"),
    ],
)
def test_cycles_and_orphans_are_refused(parents: tuple[Any, ...], says: str) -> None:
    messages = tuple(Message("user", "x", parent) for parent in parents)
    with pytest.raises(DataError, match=f"conversation c: {says}"):
        Conversation("c", messages)
    record = {"id": "c", "messages": [message.to_dict() for message in messages]}
    with pytest.raises(DataError, match=says):
        Conversation.from_dict(record)


def test_a_conversation_has_messages() -> None:
    with pytest.raises(DataError, match="it has no messages"):
        Conversation("c", ())


def test_the_json_form_leaves_out_what_is_not_there() -> None:
    conversation = Conversation("c", (Message("user", "hi"), Message("assistant", "yo", 0, {"humor": 1.0})))
    assert conversation.to_dict() == {
        "id": "c",
        "system": "",
        "source": "",
        "messages": [
            {"role": "user", "text": "hi", "parent": None},
            {"role": "assistant", "text": "yo", "parent": 0, "ratings": {"humor": 1.0}},
        ],
    }


def test_absent_and_null_fields_mean_the_same() -> None:
    bare = {"id": "c", "messages": [{"role": "user", "text": ""}]}
    full = {
        "id": "c",
        "system": None,
        "source": None,
        "messages": [
            {"role": "user", "text": "", "parent": None, "ratings": None, "predicted": None, "predicted_by": None}
        ],
    }
    assert Conversation.from_dict(bare) == Conversation.from_dict(full) == Conversation("c", (Message("user", ""),))


def test_ratings_become_floats_and_predictions_stay_apart() -> None:
    record = {
        "id": "c",
        "messages": [
            {
                "role": "assistant",
                "text": "x",
                "ratings": {"humor": 1},
                "predicted": {"humor": 2.5},
                "predicted_by": "f",
            }
        ],
    }
    message = Conversation.from_dict(record).messages[0]
    assert message == Message("assistant", "x", None, {"humor": 1.0}, {"humor": 2.5}, "f")
    assert isinstance(message.ratings["humor"], float)


GOOD: dict[str, Any] = {
    "id": "c",
    "system": "s",
    "source": "t",
    "messages": [
        {"role": "user", "text": "a", "parent": None},
        {"role": "assistant", "text": "b", "parent": 0, "ratings": {"humor": 1.0}, "predicted": {"humor": 2.0}},
    ],
}


def faulty(path: tuple[str | int, ...], value: object) -> dict[str, Any]:
    record = copy.deepcopy(GOOD)
    place: Any = record
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    return record


NAN = json.loads("NaN")


@pytest.mark.parametrize(
    ("path", "value", "says"),
    [
        (("id",), "", "id must be a non-empty string"),
        (("id",), 7, "id must be a non-empty string"),
        (("id",), "\ud83d", "id contains an unpaired surrogate"),
        (("system",), 1, "system must be a string"),
        (("source",), [], "source must be a string"),
        (("system",), "\udc00", "system contains an unpaired surrogate"),
        (("extra",), 1, "unknown key 'extra'; a conversation has id, messages, source, system"),
        (("messages",), [], "messages must be a non-empty list"),
        (("messages",), {"0": {}}, "messages must be a non-empty list"),
        (("messages",), None, "messages must be a non-empty list"),
        (("messages", 1), None, "message 1: expected a JSON object, found NoneType"),
        (("messages", 1), "hi", "message 1: expected a JSON object, found str"),
        (("messages", 1, "role"), "system", "message 1: role='system' must be user or assistant"),
        (("messages", 1, "role"), ["user"], "message 1: role=.*must be user or assistant"),
        (("messages", 1, "text"), None, "message 1: text must be a string"),
        (("messages", 0, "text"), "half \ud83d", "message 0: text contains an unpaired surrogate"),
        (("messages", 1, "content"), "b", "message 1: unknown key 'content'; a message has parent, predicted"),
        (("messages", 1, "parent"), 1, "message 1: parent=1 must come before it"),
        (("messages", 0, "parent"), 1, "message 0: parent=1 must come before it"),
        (("messages", 1, "predicted_by"), 5, "message 1: predicted_by must be a string"),
        (("messages", 1, "predicted_by"), "\udfff", "message 1: predicted_by contains an unpaired surrogate"),
        (("messages", 1, "ratings"), [4], "message 1: ratings must map attribute names to numbers"),
        (("messages", 1, "ratings", "humor"), 7, r"message 1: rating: humor=7 is outside 0..4; fix the value"),
        (("messages", 1, "ratings", "humor"), NAN, "message 1: rating: humor=nan is not finite"),
        (("messages", 1, "ratings", "humor"), json.loads("-Infinity"), "message 1: rating: humor=-inf is not finite"),
        (("messages", 1, "ratings", "humor"), json.loads("1e999"), "message 1: rating: humor=inf is not finite"),
        (("messages", 1, "ratings", "humor"), None, "message 1: rating: humor=None is not a number"),
        (("messages", 1, "ratings", "humor"), True, "message 1: rating: humor=True is not a number"),
        (("messages", 1, "ratings", "wit"), 1, "message 1: rating: wit is not an attribute.* --attribute-schema"),
        (("messages", 1, "predicted", "humor"), "1", "message 1: predicted: humor='1' is not a number"),
    ],
)
def test_each_fault_is_told_with_its_place(path: tuple[str | int, ...], value: object, says: str) -> None:
    with pytest.raises(DataError, match=says):
        Conversation.from_dict(faulty(path, value))


def test_labels_are_those_of_people_or_predicted_or_both() -> None:
    predicted = {"humor": 1.5, "quality": 3.0}
    message = Message("assistant", "x", 0, {"humor": 4.0, "verbosity": 0.0}, predicted)
    assert message.labels("ratings") == {"humor": 4.0, "verbosity": 0.0}
    assert message.labels("predicted") == predicted
    assert message.labels("ratings-first") == {"humor": 4.0, "quality": 3.0, "verbosity": 0.0}


@pytest.mark.parametrize("key", ["id", "messages"])
def test_required_keys(key: str) -> None:
    record = copy.deepcopy(GOOD)
    del record[key]
    with pytest.raises(DataError, match=key):
        Conversation.from_dict(record)


@pytest.mark.parametrize("record", [None, [], "c", 3])
def test_only_objects_are_conversations(record: object) -> None:
    with pytest.raises(DataError, match="expected a JSON object"):
        Conversation.from_dict(record)


def test_all_faults_are_told_at_once() -> None:
    record = copy.deepcopy(GOOD)
    record["id"] = ""
    record["messages"][0]["role"] = "bot"
    record["messages"][1]["ratings"] = {"humor": 9, "wit": 1}
    with pytest.raises(DataError) as caught:
        Conversation.from_dict(record)
    for part in ("id must be", "message 0: role", "message 1: rating: humor=9", "message 1: rating: wit"):
        assert part in str(caught.value)


def test_ratings_are_checked_against_the_schema_given() -> None:
    schema = Schema((Attribute("wit", 1, 7, 7),))
    record = faulty(("messages", 1), {"role": "assistant", "text": "b", "parent": 0, "ratings": {"wit": 7}})
    assert Conversation.from_dict(record, schema).messages[1].ratings == {"wit": 7.0}
    record["messages"][1]["ratings"] = {"wit": 0}
    with pytest.raises(DataError, match=r"wit=0 is outside 1..7"):
        Conversation.from_dict(record, schema)


def test_a_message_of_a_megabyte() -> None:
    text = "è\n" * 500_000
    record = {"id": "big", "messages": [{"role": "user", "text": text}]}
    assert Conversation.from_dict(json.loads(json.dumps(record))).messages[0].text == text


def test_a_long_thread_needs_no_recursion() -> None:
    roles = ("user", "assistant")
    long = Conversation("long", tuple(Message(roles[k % 2], "x", k - 1 if k else None) for k in range(5000)))  # type: ignore[arg-type]
    assert long.path(4999) == tuple(range(5000))
    assert long.threads_through == (1,) * 5000
