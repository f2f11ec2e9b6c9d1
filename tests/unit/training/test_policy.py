"""How conversations become policy trees: labels, weights, dropout and foils."""

from __future__ import annotations

import pytest

from passes import on_main, passes_of
from policy_trees import answer, labels_in, task, tree_of
from steerlm.attributes import STEERLM
from steerlm.conversation import Conversation, Message
from steerlm.errors import DataError
from steerlm.models.load import SteerModel


def test_data_without_any_label_are_refused(policy: SteerModel) -> None:
    bare = tree_of(answer("x", {}), answer("y", {}, {"humor": 1.0}))
    command = (
        r"`steerlm annotate x/rated.jsonl.gz --model ATTRIBUTE_MODEL --out x/rated.annotated.jsonl`, then train with "
    )
    for conversation, says in (
        (bare, f"but people rated some: train with --labels ratings-first, or predict labels first: {command}"),
        (tree_of(answer("x", {})), rf"no response carries labels.*`steerlm train attributes` makes one.*{command}"),
    ):
        with pytest.raises(DataError, match=says):
            task(policy, [conversation], data=["x/rated.jsonl.gz"])
    for conversations, source, count in (
        ([bare], "ratings-first", 1),
        ([bare, tree_of(answer("z", {"humor": 1.0}))], "predicted", 2),
    ):
        made = task(policy, conversations, labels=source)
        assert made.prepare(conversations, passes_of(made), on_main) == {"responses_without_labels": count}


def test_unlabelled_responses_are_context_only(policy: SteerModel) -> None:
    conversation = tree_of(answer("a", {"humor": 1.0}), answer("b", {}))
    made = task(policy, [conversation])
    tree = made.tree(conversation, 0)
    assert labels_in(policy, tree) == [(1, "humor:1", False), (2, None, False)]
    assert [segment.weight for segment in tree.segments if segment.is_response] == [1.0, 0.0]
    assert made.prepare([conversation], passes_of(made), on_main) == {"responses_without_labels": 1}


def test_thread_weights_count_the_threads_through_a_response(policy: SteerModel) -> None:
    values = {"humor": 1.0}
    conversation = Conversation(
        "c",
        (
            Message("user", "q"),
            Message("assistant", "a", 0, predicted=values),
            Message("user", "r", 1),
            Message("assistant", "b", 2, predicted=values),
            Message("assistant", "c", 2, predicted=values),
            Message("user", "s", 1),
        ),
    )
    tree = task(policy, [conversation], thread_weights=True).tree(conversation, 0)
    assert {s.message: s.weight for s in tree.segments if s.is_response} == {1: 3.0, 3: 1.0, 4: 1.0}


FULL = dict.fromkeys(STEERLM.names, 2.0)


def test_label_dropout_leaves_attributes_out_at_its_rate(policy: SteerModel) -> None:
    conversations = [tree_of(*(answer(f"{k}", FULL) for k in range(10)), name=f"c{n}") for n in range(10)]
    made = task(policy, conversations, label_dropout=0.25)
    kept = 0
    for conversation in conversations:
        for _, line, _ in labels_in(policy, made.tree(conversation, 0)):
            values = STEERLM.parse_label_line(line or "")
            assert set(values.values()) <= {2}
            kept += len(values)
    # 900 draws: three standard deviations of the mean are 0.043.
    assert kept / 900 == pytest.approx(0.75, abs=0.043)


def test_label_dropout_changes_with_the_epoch_and_repeats_with_the_seed(policy: SteerModel) -> None:
    conversation = tree_of(*(answer(f"{k}", FULL) for k in range(5)))
    made = task(policy, [conversation], label_dropout=0.5)
    again = task(policy, [conversation], label_dropout=0.5)
    other = task(policy, [conversation], label_dropout=0.5, seed=1)
    assert made.tree(conversation, 0) == again.tree(conversation, 0)
    assert made.tree(conversation, 0) != made.tree(conversation, 1)
    assert made.tree(conversation, 0) != other.tree(conversation, 0)


def test_a_response_that_lost_all_labels_is_trained_still(policy: SteerModel) -> None:
    conversation = tree_of(*(answer(f"{k}", {"humor": 1.0}) for k in range(30)))
    tree = task(policy, [conversation], label_dropout=0.5).tree(conversation, 0)
    lines = labels_in(policy, tree)
    assert {line for _, line, _ in lines} == {"humor:1", None}
    assert all(segment.weight == 1.0 for segment in tree.segments if segment.is_response)


def test_no_foils_without_contrast(policy: SteerModel) -> None:
    conversation = tree_of(answer("a", {"humor": 1.0}), answer("b", {"humor": 3.0}))
    assert not any(foil for *_, foil in labels_in(policy, task(policy, [conversation]).tree(conversation, 0)))


def test_foils_come_from_siblings_that_differ(policy: SteerModel) -> None:
    conversation = tree_of(
        answer("a", {"humor": 1.0, "quality": 2.0}),
        answer("b", {"humor": 1.2, "quality": 2.0}),  # the same line as a
        answer("c", {"humor": 3.0}),  # says nothing of quality: that of the response stays
    )
    made = task(policy, [conversation], contrast=0.5)
    foils = {message: line for message, line, foil in labels_in(policy, made.tree(conversation, 0)) if foil}
    assert foils[1] == "quality:2,humor:3"
    assert foils[2] == "quality:2,humor:3"
    assert foils[3] == "humor:1"


def test_foils_without_siblings_come_from_other_conversations(policy: SteerModel) -> None:
    lonely = tree_of(answer("a", {"humor": 1.0}))
    other = tree_of(answer("b", {"humor": 4.0}), name="d")
    made = task(policy, [lonely, other], contrast=0.5)
    for tree in (made.tree(lonely, 0), made.held_out_tree(lonely)):
        assert labels_in(policy, tree) == [(1, "humor:1", False), (1, "humor:4", True)]
    alone = task(policy, [lonely], contrast=0.5)
    assert labels_in(policy, alone.tree(lonely, 0)) == [(1, "humor:1", False)]


def test_foils_have_some_attributes_of_another_response(policy: SteerModel) -> None:
    usual, rare = {"quality": 3.0, "humor": 1.0, "verbosity": 2.0}, {"quality": 2.0, "humor": 4.0, "verbosity": 1.0}
    answers = [answer(f"{k}", rare if k % 4 == 0 else usual) for k in range(80)]
    conversation = tree_of(*answers, answer("x", {"quality": 1.0}))
    made = task(policy, [conversation], contrast=0.5, contrast_attributes=["humor", "verbosity"])
    foils = [line for _, line, foil in labels_in(policy, made.tree(conversation, 0)) if foil]
    # Both attributes at once, and quality stays; a response with neither has no foil.
    assert set(foils) == {"quality:3,humor:4,verbosity:1", "quality:2,humor:1,verbosity:2"}
    assert len(foils) > 70
    held_out = {line for _, line, foil in labels_in(policy, made.held_out_tree(conversation)) if foil}
    assert "quality:2,humor:4,verbosity:1" in held_out  # there a foil has all labels of a sibling


def test_a_foil_is_half_the_scale_away(policy: SteerModel) -> None:
    """Of five levels the neighbours are never foils, and all that lie two or more away are."""
    conversation = tree_of(*(answer(f"{k}", {"humor": float(k % 5)}) for k in range(100)))
    made = task(policy, [conversation], contrast=0.5, contrast_attributes=["humor"])
    level = {f"humor:{k}": k for k in range(5)}
    own = {message: level[line] for message, line, foil in labels_in(policy, made.tree(conversation, 0)) if not foil}
    foils = {message: level[line] for message, line, foil in labels_in(policy, made.tree(conversation, 0)) if foil}
    pairs = {(own[message], foil) for message, foil in foils.items()}
    assert pairs == {(a, b) for a in range(5) for b in range(5) if abs(a - b) >= 2}


def test_an_attribute_to_change_must_be_labelled(policy: SteerModel) -> None:
    conversation = tree_of(answer("a", {"humor": 1.0}))
    with pytest.raises(DataError, match="names wit, of which no response carries a label"):
        task(policy, [conversation], contrast=0.5, contrast_attributes=["humor", "wit"])


def test_a_contrast_without_any_foil_is_refused(policy: SteerModel) -> None:
    """Where labels reach over two neighbouring levels, no other is half the scale away."""
    near = tree_of(*(answer(f"{k}", {"humor": 1.0 + k % 2, "quality": float(k % 5)}) for k in range(20)))
    with pytest.raises(DataError, match=r"no two responses.*humor.*match_spread or rank_attributes"):
        task(policy, [near], contrast=0.5, contrast_attributes=["humor"])
    made = task(policy, [near], contrast=0.5, contrast_attributes=["humor", "quality"])
    assert any(foil for _, _, foil in labels_in(policy, made.tree(near, 0)))


def test_how_many_responses_can_have_a_foil_is_told(policy: SteerModel) -> None:
    """Of levels 0, 1, 2 in humor the middle one has none two levels away."""
    conversation = tree_of(*(answer(f"{k}", {"humor": float(k % 3)}) for k in range(30)), answer("x", {"quality": 1.0}))
    made = task(policy, [conversation], contrast=0.5, contrast_attributes=["humor"])
    told = made.prepare([conversation], passes_of(made), on_main)
    assert told["share_with_foils"] == pytest.approx(20 / 31)


def test_unlabelled_responses_have_and_are_no_foils(policy: SteerModel) -> None:
    conversation = tree_of(answer("a", {"humor": 1.0}), answer("b", {}))
    tree = task(policy, [conversation], contrast=0.5).tree(conversation, 0)
    assert labels_in(policy, tree) == [(1, "humor:1", False), (2, None, False)]


def test_dropout_leaves_out_the_same_attributes_of_a_response_and_its_foil(policy: SteerModel) -> None:
    low, high = dict.fromkeys(STEERLM.names, 0.0), dict.fromkeys(STEERLM.names, 4.0)
    conversation = tree_of(answer("a", low), answer("b", high))
    made = task(policy, [conversation], contrast=0.5, label_dropout=0.5)
    for epoch in range(5):
        lines = labels_in(policy, made.tree(conversation, epoch))
        for message in (1, 2):
            own, foil = (STEERLM.parse_label_line(line or "") for number, line, _ in lines if number == message)
            assert own.keys() == foil.keys()
            assert all(abs(own[name] - foil[name]) == 4 for name in own)


def test_predictions_are_stretched_to_the_spread_of_ratings(policy: SteerModel) -> None:
    """Ratings 0 and 4 have mean 2 and deviation 2, predictions of the same responses 1.5 and 0.5: times 4 about 2."""
    conversation = tree_of(
        answer("a", {"humor": 1.0}, {"humor": 0.0}),
        answer("b", {"humor": 1.5}),
        answer("c", {"humor": 2.0, "quality": 1.0}, {"humor": 4.0}),
    )
    made = task(policy, [conversation], match_spread=True, labels="predicted")
    lines = [line for _, line, _ in labels_in(policy, made.tree(conversation, 0))]
    assert lines == ["humor:0", "humor:2", "quality:1,humor:4"]
    plain = task(policy, [conversation], labels="predicted")
    assert [line for _, line, _ in labels_in(policy, plain.tree(conversation, 0))] == [
        "humor:1",
        "humor:2",
        "quality:1,humor:2",
    ]


def test_predictions_are_dealt_out_by_rank(policy: SteerModel) -> None:
    """Ten predictions, most of them close together, take every level twice; equal ones are on one level."""
    predicted = [1.40, 1.41, 1.42, 1.43, 1.44, 1.45, 1.46, 1.47, 1.48, 9.0]
    made_of = tree_of(*(answer(str(n), {"humor": value, "quality": 1.0}) for n, value in enumerate(predicted)))
    made = task(policy, [made_of], rank_attributes=["humor"], labels="predicted")
    lines = [line for _, line, _ in labels_in(policy, made.tree(made_of, 0))]
    assert lines == [f"quality:1,humor:{level}" for level in (0, 0, 1, 1, 2, 2, 3, 3, 4, 4)]
    alike = tree_of(*(answer(str(n), {"humor": 1.0}) for n in range(3)))
    made = task(policy, [alike], rank_attributes=["humor"], labels="predicted")
    assert {line for _, line, _ in labels_in(policy, made.tree(alike, 0))} == {"humor:2"}
    # Data that were not among those ranked have a place among them too.
    other = tree_of(answer("x", {"humor": -3.0}), answer("y", {"humor": 1.425}), answer("z", {"humor": 20.0}))
    made = task(policy, [made_of], rank_attributes=["humor"], labels="predicted")
    assert [line for _, line, _ in labels_in(policy, made.tree(other, 0))] == ["humor:0", "humor:1", "humor:4"]


def ranked_levels(policy: SteerModel, predicted: list[float]) -> list[int]:
    """Of one response for each prediction of humor."""
    made_of = tree_of(*(answer(str(n), {"humor": value}) for n, value in enumerate(predicted)))
    made = task(policy, [made_of], rank_attributes=["humor"], labels="predicted")
    return [int((line or "").removeprefix("humor:")) for _, line, _ in labels_in(policy, made.tree(made_of, 0))]


def test_predictions_at_the_ends_of_the_scale_take_its_ends(policy: SteerModel) -> None:
    """Where more than a fifth are at an end, they have its level, and the rest is dealt over the others."""
    rest = [1 + n / 10 for n in range(8)]
    assert ranked_levels(policy, [0.0] * 12 + rest) == [0] * 12 + [1, 1, 2, 2, 3, 3, 4, 4]
    assert ranked_levels(policy, rest + [4.0] * 12) == [0, 0, 1, 1, 2, 2, 3, 3] + [4] * 12
    assert ranked_levels(policy, [0.0] * 12 + rest[:6] + [4.0] * 12) == [0] * 12 + [1, 1, 2, 2, 3, 3] + [4] * 12
    # Three of twenty are no more than a fifth, until the crowd at the other end has left.
    assert ranked_levels(policy, [0.0] * 11 + rest[:6] + [4.0] * 3) == [0] * 11 + [1, 1, 2, 2, 3, 3] + [4] * 3
    assert ranked_levels(policy, [0.0] * 5) == [0] * 5
    assert ranked_levels(policy, [0.0] * 3 + [4.0] * 3) == [0] * 3 + [4] * 3


def test_predictions_at_an_end_that_are_no_crowd_change_nothing(policy: SteerModel) -> None:
    assert ranked_levels(policy, [0.0, 0.0, 0.0, 0.1, 1.0, 1.1, 1.2, 1.3, 1.4, 1.5, 1.6, 1.7, 1.8, 1.9, 4.0]) == [
        *(0, 0, 0, 1, 1, 1, 2, 2, 2, 3, 3, 3, 4, 4, 4),
    ]


@pytest.mark.parametrize(
    ("names", "message"),
    [(["wit"], "rank_attributes names wit, of which no response"), (["humor"], "humor, which is predicted for no")],
)
def test_ranks_of_what_is_not_predicted(policy: SteerModel, names: list[str], message: str) -> None:
    with pytest.raises(DataError, match=message):
        task(policy, [tree_of(answer("a", {"quality": 1.0}))], rank_attributes=names, labels="predicted")


@pytest.mark.parametrize(("best_by", "higher"), [(None, False), ("loss", False), ("gap", True), ("gap_won", True)])
def test_the_figure_by_which_weights_are_kept(policy: SteerModel, best_by: str | None, higher: bool) -> None:
    made = task(policy, [tree_of(answer("a", {"humor": 1.0}))], best_by=best_by)
    assert (made.best_by, made.higher_is_better) == (best_by, higher)
