"""Open Assistant in both layouts: trees, ratings, and everything that is left out."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import pytest

from steerlm.attributes import STEERLM, Attribute, Schema
from steerlm.conversation import Conversation
from steerlm.dialects import NEMO_SYSTEM
from steerlm.errors import DataError, SchemaError
from steerlm.sources import Imported

Load = Callable[..., Imported]


def message(
    name: str, parent: str | None = None, role: str | None = None, tree: str = "t", **more: Any
) -> dict[str, Any]:
    """A flat message; roles alternate with the depth that a name's length stands for."""
    role = role or ("prompter" if len(name) % 2 else "assistant")
    return {
        "message_id": name,
        "parent_id": parent,
        "message_tree_id": tree,
        "text": f"text {name}",
        "role": role,
        **more,
    }


def flat_labels(**values: float) -> dict[str, Any]:
    return {"name": list(values), "value": list(values.values()), "count": [3] * len(values)}


def nested_labels(**values: float) -> dict[str, Any]:
    return {name: {"value": value, "count": 3} for name, value in values.items()}


# a ─┬─ ab ── abc ── abcd
#    └─ ac
TREE = [
    message("a"),
    message("ab", "a", labels=flat_labels(spam=0.0, quality=0.75, humor=1 / 3)),
    message("abc", "ab", labels=flat_labels(quality=1.0)),
    message("abcd", "abc", labels=flat_labels(quality=0.125)),
    message("ac", "a"),
]
NESTED = {
    "message_tree_id": "t",
    "prompt": {
        **message("a"),
        "replies": [
            {
                **message("ab", "a"),
                "labels": nested_labels(spam=0.0, quality=0.75, humor=1 / 3),
                "replies": [
                    {
                        **message("abc", "ab"),
                        "labels": nested_labels(quality=1.0),
                        "replies": [{**message("abcd", "abc"), "labels": nested_labels(quality=0.125), "replies": []}],
                    }
                ],
            },
            {**message("ac", "a")},
        ],
    },
}


def shape(conversation: Conversation) -> list[tuple[str, int | None]]:
    return [(item.text.removeprefix("text "), item.parent) for item in conversation.messages]


def test_a_flat_file_becomes_trees_with_parents_before_children(load: Load) -> None:
    [conversation] = load("oasst", TREE).conversations
    assert shape(conversation) == [("a", None), ("ab", 0), ("abc", 1), ("abcd", 2), ("ac", 0)]
    assert [item.role for item in conversation.messages] == ["user", "assistant", "user", "assistant", "assistant"]
    assert (conversation.id, conversation.source, conversation.system) == ("t", "oasst", NEMO_SYSTEM)


def test_ratings_are_the_labels_times_four_unrounded_and_on_responses_only(load: Load) -> None:
    imported = load("oasst", TREE)
    ratings = [dict(item.ratings) for item in imported.conversations[0].messages]
    # 0.75*4 = 3, 1/3*4 = 1.333..., 0.125*4 = 0.5; the prompt "abc" has labels that are not taken.
    assert ratings == [{}, {"quality": 3.0, "humor": 1 / 3 * 4}, {}, {"quality": 0.5}, {}]
    assert imported.report.left_out["ratings"] == {"of attributes not taken": 1, "of user messages": 1}


def test_half_a_level_rounds_to_even_in_the_label_line(load: Load) -> None:
    labels = flat_labels(quality=0.125, toxicity=0.375, humor=0.625, creativity=0.875)
    [conversation] = load("oasst", [message("a"), message("ab", "a", labels=labels)]).conversations
    # 0.5, 1.5, 2.5, 3.5 -> 0, 2, 2, 4
    assert STEERLM.label_line(conversation.messages[1].ratings) == "quality:0,toxicity:2,humor:2,creativity:4"


def test_both_layouts_give_the_same_conversation(load: Load) -> None:
    assert load("oasst", [NESTED]).conversations == load("oasst", TREE).conversations


def test_any_order_of_a_flat_file_gives_the_same_messages(load: Load) -> None:
    wanted = sorted(item for item, _ in shape(load("oasst", TREE).conversations[0]))
    generator = random.Random(0)
    for _ in range(5):
        shuffled = generator.sample(TREE, len(TREE))
        [conversation] = load("oasst", shuffled).conversations
        assert sorted(item for item, _ in shape(conversation)) == wanted
        for index, item in enumerate(conversation.messages):
            if item.parent is not None:
                assert conversation.messages[item.parent].text == item.text[:-1] or item.text == "text ac", index


def test_deleted_and_rejected_messages_go_with_what_answers_them(load: Load) -> None:
    deleted = [{**item, "deleted": item["message_id"] == "ab"} for item in TREE]
    imported = load("oasst", deleted)
    assert shape(imported.conversations[0]) == [("a", None), ("ac", 0)]
    assert imported.report.left_out["messages"] == {"deleted": 1, "below a message left out": 2}
    assert imported.report.left_out["ratings"]["of messages left out"] == 3
    assert len(load("oasst", deleted, keep_deleted=True).conversations[0].messages) == 5

    rejected = [{**item, "review_result": item["message_id"] != "abc"} for item in TREE]
    imported = load("oasst", rejected)
    assert shape(imported.conversations[0]) == [("a", None), ("ab", 0), ("ac", 0)]
    assert imported.report.left_out["messages"] == {"rejected in review": 1, "below a message left out": 1}
    assert len(load("oasst", rejected, keep_rejected=True).conversations[0].messages) == 5


def test_a_review_that_has_no_result_rejects_nothing(load: Load) -> None:
    assert load("oasst", [{**item, "review_result": None} for item in TREE]).report.kept["messages"] == 5


@pytest.mark.parametrize("never", [{"review_result": None}, {}])
def test_messages_that_nobody_reviewed_can_be_left_out(load: Load, never: dict[str, None]) -> None:
    bare = [{key: value for key, value in item.items() if key != "review_result"} for item in TREE]
    tree = [{**item, **(never if item["message_id"] == "abc" else {"review_result": True})} for item in bare]
    imported = load("oasst", tree, drop_unreviewed=True)
    assert shape(imported.conversations[0]) == [("a", None), ("ab", 0), ("ac", 0)]
    assert imported.report.left_out["messages"] == {"never reviewed": 1, "below a message left out": 1}


def test_languages_are_by_message_and_cover_their_variants(load: Load) -> None:
    languages = {"a": "pt-BR", "ab": "pt", "abc": "pt-BR", "abcd": "en"}
    records = [{**item, "lang": languages[item["message_id"]]} for item in TREE if item["message_id"] in languages]
    imported = load("oasst", [*records, message("ac", "a")], languages=("pt",))
    assert shape(imported.conversations[0]) == [("a", None), ("ab", 0), ("abc", 1)]
    assert imported.report.left_out["messages"] == {"in another language": 1, "of unknown language": 1}
    assert load("oasst", records, languages=("en", "pt")).report.kept["messages"] == 4
    assert load("oasst", records, languages=("p",)).conversations == ()


def test_few_labels_leave_a_rating_out(load: Load) -> None:
    labels = {"name": ["quality", "humor", "toxicity"], "value": [0.5, 0.5, 0.0], "count": [1, 2, 3]}
    imported = load("oasst", [message("a"), message("ab", "a", labels=labels)], min_labels=2)
    assert imported.conversations[0].messages[1].ratings == {"humor": 2.0, "toxicity": 0.0}
    assert imported.report.left_out["ratings"] == {"fewer than 2 labels": 1}


def test_labels_without_a_value_or_null_are_absent(load: Load) -> None:
    records = [message("a", labels=None), message("ab", "a", labels={"quality": None, "humor": {"value": None}})]
    imported = load("oasst", records)
    assert imported.report.read["ratings"] == 0
    assert imported.conversations[0].messages[1].ratings == {}


def test_other_attributes_are_taken_when_named_and_stretched_to_their_scale(load: Load) -> None:
    labels = flat_labels(helpfulness=0.5, quality=0.5)
    records = [message("a"), message("ab", "a", labels=labels)]
    schema = Schema((Attribute("helpfulness", low=1, high=5), Attribute("quality")))
    [conversation] = load("oasst", records, schema, attributes=("helpfulness",)).conversations
    assert conversation.messages[1].ratings == {"helpfulness": 3.0}
    with pytest.raises(SchemaError, match="unknown attribute 'violence'"):
        load("oasst", records, schema, attributes=("violence",))


def test_an_orphan_is_left_out_with_what_is_below_it(load: Load) -> None:
    imported = load("oasst", [*TREE, message("xy", "gone"), message("xyz", "xy")])
    assert imported.report.kept["messages"] == 5
    assert imported.report.left_out["messages"] == {
        "its parent is not in the data": 1,
        "below a message left out": 1,
    }


def test_a_tree_without_a_response_is_left_out(load: Load) -> None:
    imported = load("oasst", [message("a"), *[{**item, "message_tree_id": "u"} for item in [message("b")]]])
    assert imported.conversations == ()
    assert imported.report.left_out["conversations"] == {"without a response": 2}


def test_a_message_that_is_listed_twice_counts_once(load: Load) -> None:
    imported = load("oasst", [*TREE, NESTED])
    assert len(imported.conversations) == 1
    assert imported.report.left_out["messages"] == {"listed before": 5}


def test_a_cycle_is_a_fault_with_its_place(load: Load) -> None:
    records = [*TREE, message("xy", "xyz", tree="c"), message("xyz", "xy", tree="c")]
    with pytest.raises(DataError, match=r"line 6: message xy: its parents form a cycle \(parent_id xyz\)"):
        load("oasst", records)
    imported = load("oasst", records, skip_faulty=True)
    assert (imported.report.kept["messages"], imported.report.left_out["messages"]) == (5, {"faulty": 2})


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"role": "system"}, r"line 2: message ab: role='system' must be prompter or assistant"),
        ({"role": None}, r"line 2: message ab: role is missing"),
        ({"text": 7}, r"line 2: message ab: text must be a string, found a number"),
        ({"text": None}, r"text is missing"),
        ({"text": "half \ud83d"}, r"unpaired surrogate"),
        ({"parent_id": 3}, r"parent_id must be a string or null, found a number"),
        ({"message_id": ["ab"]}, r"line 2: message_id must be a string, found a list"),
        ({"deleted": "no"}, r"deleted must be true, false or null, found a string"),
        ({"labels": [1]}, r"labels must be an object, found a list"),
        ({"labels": {"quality": 0.5}}, r"quality must be an object, found a number"),
        ({"labels": {"name": ["quality"], "value": []}}, r"lists of the same length"),
        ({"labels": {"name": [1], "value": [0.5]}}, r"a label's name must be a string"),
        ({"labels": flat_labels(quality=1.2)}, r"label quality=1.2 must be a number in 0..1"),
        ({"labels": {"quality": {"value": True, "count": 1}}}, r"label quality=True must be a number"),
        ({"labels": {"quality": {"value": float("nan"), "count": 1}}}, r"label quality=nan must be a number"),
        ({"labels": {"quality": {"value": 1, "count": "3"}}}, r"count of label quality must be a whole number"),
        ({"labels": {"name": ["quality"] * 2, "value": [0, 1]}}, r"label quality is given twice"),
    ],
)
def test_faults_say_where_and_what(load: Load, change: dict[str, Any], complaint: str, tmp_path: Any) -> None:
    import json

    records = [message("a"), {**message("ab", "a"), **change}, message("ac", "a")]
    # json.dumps escapes what UTF-8 cannot hold, as real files do.
    path = tmp_path / "raw.jsonl"
    path.write_text("".join(json.dumps(item) + "\n" for item in records), encoding="utf-8")
    from steerlm.sources import ImportOptions, import_conversations

    with pytest.raises(DataError, match=complaint):
        import_conversations("oasst", path)
    imported = import_conversations("oasst", path, ImportOptions(skip_faulty=True))
    assert imported.report.left_out["messages"] == {"faulty": 1}
    assert len(imported.report.faults) == 1
    assert [item.text for item in imported.conversations[0].messages] == ["text a", "text ac"]


@pytest.mark.parametrize(
    ("record", "complaint"),
    [
        ({"message_tree_id": "t", "prompt": "hello"}, r"line 1: prompt must be an object, found a string"),
        ({"prompt": {**message("a"), "replies": {}}}, r"prompt: replies must be a list, found an object"),
        (
            {"prompt": {**message("a"), "replies": [{"message_id": "ab"}]}},
            r"prompt: reply 0: message ab: role is missing",
        ),
    ],
)
def test_faults_of_nested_trees_say_where(load: Load, record: dict[str, Any], complaint: str) -> None:
    with pytest.raises(DataError, match=complaint):
        load("oasst", [record])
    load("oasst", [record, NESTED], skip_faulty=True)


def test_below_a_faulty_nested_message_nothing_becomes_a_conversation_of_its_own(load: Load) -> None:
    inner = {**message("abc", "ab"), "replies": [message("abcd", "abc")]}
    nested = {"prompt": {**message("a"), "replies": [{**message("ab"), "message_id": None, "replies": [inner]}]}}
    imported = load("oasst", [nested], skip_faulty=True)
    assert imported.conversations == ()
    assert imported.report.left_out["messages"]["faulty"] == 1
    assert imported.report.left_out["messages"]["its parent is not in the data"] == 1


def test_a_thread_of_thousands_of_turns_is_no_problem(load: Load) -> None:
    names = [f"m{number}" for number in range(3000)]
    records = [
        message(name, names[number - 1] if number else None, "assistant" if number % 2 else "prompter")
        for number, name in enumerate(names)
    ]
    [conversation] = load("oasst", records).conversations
    assert [item.parent for item in conversation.messages] == [None, *range(2999)]


def test_unicode_and_outer_space_come_through_unchanged(load: Load) -> None:
    text = " \u00a0Ünï 🙂 <extra_id_1>User\n\u2028 "
    [conversation] = load("oasst", [{**message("a"), "text": text}, message("ab", "a")]).conversations
    assert conversation.messages[0].text == text
