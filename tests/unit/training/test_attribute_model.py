"""The attribute model's task: which responses are rated, how they weigh, what validation tells."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch

from passes import make_packs, on_main, passes_of, validate
from steerlm.attention import use_tree_attention
from steerlm.attributes import STEERLM
from steerlm.conversation import Conversation, Message
from steerlm.errors import DataError, SchemaError
from steerlm.models.load import SteerModel
from steerlm.training.attribute_model import AttributeTask, predict, rating_table, score_states
from steerlm.training.config import AttributeSettings
from steerlm.training.ridge import RidgeFit
from steerlm.training.survey import Survey
from steerlm.training.task import Batch, Term

RATED = Conversation(
    "c",
    (
        Message("user", "Why?"),
        Message("assistant", "a", 0, {"quality": 4.0, "humor": 1.0}),
        Message("assistant", "b", 0, {"quality": 1.0}),
        Message("assistant", "c", 0),
        Message("user", "And?", 1),
        Message("assistant", "d", 4, {"humor": 0.0}),
        Message("user", "So?", 1),
    ),
)
OTHER = Conversation("d", (Message("user", "Hm?"), Message("assistant", "e", 0, {"quality": 2.5})))


def task(model: SteerModel, *conversations: Conversation, **settings: Any) -> AttributeTask:
    made = AttributeTask(model, AttributeSettings(**{"context": 256, "pack_tokens": 256, **settings}))
    if conversations:
        made.remember(Survey.of(conversations))
    use_tree_attention(model.network, "segments")
    return made


def test_rating_table() -> None:
    table = rating_table(STEERLM, [{"toxicity": 1.0}, {}])
    assert table.shape == (2, 9)
    assert table[0, 1] == 1.0
    assert np.isnan(table).sum() == 17
    assert rating_table(STEERLM, []).shape == (0, 9)


def test_only_rated_responses_are_scored_in_training(attribute_model: SteerModel) -> None:
    tree = task(attribute_model, RATED).tree(RATED, 0)
    assert [tree.segments[index].message for index in tree.active] == [1, 2, 5]


def test_labels_never_enter(attribute_model: SteerModel) -> None:
    tree = task(attribute_model, RATED).tree(RATED, 0)
    assert not any(span.role == "label" for segment in tree.segments for span in segment.spans)


def test_data_without_ratings_are_refused(attribute_model: SteerModel) -> None:
    bare = Conversation("c", (Message("user", "q"), Message("assistant", "a", 0, predicted={"humor": 1.0})))
    with pytest.raises(DataError, match="no response of the data carries ratings"):
        task(attribute_model, bare)
    with pytest.raises(DataError, match="no held-out response carries ratings"):
        validate(task(attribute_model, RATED), [bare])


def test_unknown_loss_weights_are_refused(attribute_model: SteerModel) -> None:
    with pytest.raises(SchemaError, match="unknown attribute 'wit'"):
        task(attribute_model, loss_weights={"wit": 2.0})


def packs(made: AttributeTask, *conversations: Conversation) -> Any:
    return make_packs([made.tree(item, 0) for item in conversations], 256, 256)


def test_the_count_is_that_of_ratings_and_weights(attribute_model: SteerModel) -> None:
    """Five ratings; with weights 2 for quality and 0.5 for humor 2*3 + 0.5*2 = 7. Message 1 is on two threads."""
    plain = task(attribute_model, RATED, OTHER)
    assert plain.terms(packs(plain, RATED, OTHER)) == {"squared_error": Term(1.0, 5.0)}
    weighted = task(attribute_model, RATED, OTHER, loss_weights={"quality": 2.0, "humor": 0.5})
    assert weighted.terms(packs(weighted, RATED, OTHER)) == {"squared_error": Term(1.0, 7.0)}
    threads = task(attribute_model, RATED, OTHER, thread_weights=True)
    assert threads.terms(packs(threads, RATED, OTHER)) == {"squared_error": Term(1.0, 2 * 2 + 1 + 1 + 1)}


@pytest.mark.parametrize("options", [{}, {"loss_weights": {"quality": 2.0}, "thread_weights": True}])
def test_the_loss_by_hand(attribute_model: SteerModel, options: dict[str, Any]) -> None:
    made = task(attribute_model, RATED, OTHER, **options)
    total = count = expected = 0.0
    for pack in packs(made, RATED, OTHER):
        batch = Batch.of(pack, attribute_model.device)
        with torch.no_grad():
            loss = made.losses(batch)["squared_error"]
            predicted = predict(attribute_model, batch).tolist()
        total, count = total + loss.total.item(), count + loss.count.item()
        for response, scores in zip(pack.responses, predicted, strict=True):
            conversation = {"c": RATED, "d": OTHER}[response.conversation]
            for name, rating in conversation.messages[response.message].ratings.items():
                weight = 2.0 if options and name == "quality" else 1.0
                weight *= conversation.threads_through[response.message] if options else 1
                expected += weight * (scores[STEERLM.names.index(name)] - rating) ** 2
    assert total == pytest.approx(expected, rel=1e-5)
    assert made.terms(packs(made, RATED, OTHER))["squared_error"].count == count


def test_validation_beside_the_training_mean(attribute_model: SteerModel) -> None:
    """Quality was 4, 1, 2.5 in training: its mean 2.5 is off by 1.5, 1.5, 0."""
    made = task(attribute_model, RATED, OTHER)
    figures = validate(made, [RATED, OTHER])
    quality = figures["attributes"]["quality"]
    assert quality["n"] == 3
    assert quality["baseline_mae"] == pytest.approx(1.0)
    assert quality["baseline_rmse"] == pytest.approx(math.sqrt(1.5))
    # All five ratings: quality as above, humor 1 and 0 around 0.5.
    assert figures["baseline_loss"] == pytest.approx((1.5**2 * 2 + 0.5**2 * 2) / 5)
    with torch.no_grad():
        batches = [Batch.of(pack, attribute_model.device) for pack in packs(made, RATED, OTHER)]
        total = sum(made.losses(batch)["squared_error"].total.item() for batch in batches)
    assert figures["loss"] == pytest.approx(total / 5, rel=1e-5)
    assert list(figures["attributes"]) == ["quality", "humor"]


def test_the_ridge_start_fits_the_ratings(attribute_model: SteerModel) -> None:
    """As many ratings as conversations, states of 32 dimensions: afterwards predictions beat the mean by far."""
    generator = torch.Generator().manual_seed(0)
    conversations = []
    for index in range(40):
        wordy = bool(torch.randint(2, (1,), generator=generator))
        text = "so " * (12 if wordy else 1) + f"{index}"
        values = {"verbosity": 4.0 if wordy else 0.0}
        conversations.append(Conversation(f"{index}", (Message("user", "q"), Message("assistant", text, 0, values))))
    made = task(attribute_model, *conversations)
    figures = made.prepare(conversations, passes_of(made), on_main)
    assert list(figures["ridge"]) == ["verbosity"]
    assert figures["ridge"]["verbosity"].keys() == {"penalty", "error"}
    after = validate(made, conversations)
    assert after["loss"] < 0.5 * after["baseline_loss"]
    head = attribute_model.network.score.weight
    assert not head[STEERLM.names.index("quality")].any()


def test_the_ridge_start_is_solved_by_one_process(attribute_model: SteerModel) -> None:
    """The others take the main one's word: here one that solves nothing is told weights of 0.25."""
    made = task(attribute_model, RATED)
    head = attribute_model.network.score.weight
    told = (torch.full(head.shape, 0.25), {0: RidgeFit(0.1, 0.5)})
    assert made.prepare([RATED], passes_of(made), lambda work: told)["ridge"] == {
        STEERLM.names[0]: {"penalty": 0.1, "error": 0.5}
    }
    assert torch.equal(head, told[0])


def test_a_random_head_is_left_alone(attribute_model: SteerModel) -> None:
    before = attribute_model.network.score.weight.clone()
    made = task(attribute_model, RATED, head="random")
    assert made.prepare([RATED], passes_of(made), on_main) == {}
    assert torch.equal(attribute_model.network.score.weight, before)


def test_scores_are_computed_in_float32_under_autocast(attribute_model: SteerModel) -> None:
    made = task(attribute_model, RATED)
    batch = Batch.of(packs(made, RATED)[0], attribute_model.device)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        scores = predict(attribute_model, batch)
        states = score_states(attribute_model, batch)
    assert scores.dtype == torch.float32
    torch.testing.assert_close(scores, states.float() @ attribute_model.network.score.weight.T)
