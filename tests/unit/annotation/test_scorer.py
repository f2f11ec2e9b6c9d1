"""Scores in tree-packed batches are those of flattened threads through bare transformers."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoModelForSequenceClassification

from benchmarks.measure import PassLengths
from steerlm.annotation.scorer import Scorer, on_scale, trained_context
from steerlm.annotation.settings import ScoreSettings
from steerlm.attributes import STEERLM, Attribute, Schema
from steerlm.conversation import Conversation, Message
from steerlm.errors import ConfigError, ModelError
from steerlm.models.load import SteerModel, head_of, new_model
from tiny_judge import random_trees, save_tiny_base

FP32 = ScoreSettings(precision="fp32")


def chain(*texts: str, system: str = "") -> Conversation:
    """A single thread of alternating turns, the user first."""
    roles = ("user", "assistant")
    messages = (Message(roles[k % 2], text, k - 1 if k else None) for k, text in enumerate(texts))  # type: ignore[arg-type]
    return Conversation("chain", tuple(messages), system)


def flattened(directory: Path, model: SteerModel, conversation: Conversation, message: int) -> list[float]:
    """The scores of one response, from its own thread, with nothing of ours but the tokens."""
    bare = AutoModelForSequenceClassification.from_pretrained(directory).eval()
    tree = model.renderer.tree(conversation, "score")
    segment = next(k for k, item in enumerate(tree.segments) if item.message == message)
    with torch.no_grad():
        scores: list[float] = bare(torch.tensor([tree.path_ids(segment)])).logits[0].tolist()
    return scores


@pytest.mark.parametrize("pack_tokens", [512, 4096])
def test_scores_equal_flattened_threads(judge_directory: Path, judge: SteerModel, pack_tokens: int) -> None:
    conversations = random_trees(20, seed=5)
    settings = ScoreSettings(context=512, pack_tokens=pack_tokens, precision="fp32")
    scored = Scorer(judge, settings).score(conversations)
    for conversation, values in zip(conversations, scored.values, strict=True):
        assert list(values) == list(conversation.responses)
        for message, scores in values.items():
            assert list(scores) == list(STEERLM.names)
            expected = flattened(judge_directory, judge, conversation, message)
            assert list(scores.values()) == pytest.approx(expected, abs=1e-4)
    assert scored.report.responses == sum(len(c.responses) for c in conversations)


def test_passes_in_bfloat16_are_of_few_lengths_on_a_cpu(judge: SteerModel) -> None:
    conversations = random_trees(3, seed=5)
    for precision, all_even in (("fp32", False), ("bf16", True)):
        with PassLengths() as passes:
            Scorer(judge, ScoreSettings(context=512, pack_tokens=512, precision=precision)).score(conversations)
        assert all(length % 64 == 0 for length in passes.lengths) is all_even


def test_big_tree_is_split_without_changing_scores(judge: SteerModel) -> None:
    prompt = Message("user", "why is the sea salty " * 5)
    answers = [Message("assistant", f"because of rivers, reason {k}", 0) for k in range(30)]
    tree = Conversation("wide", (prompt, *answers))
    whole = Scorer(judge, FP32).score([tree])
    split = Scorer(judge, ScoreSettings(context=256, pack_tokens=256, precision="fp32")).score([tree])
    assert (whole.report.split, split.report.split) == (0, 1)
    for message in tree.responses:
        assert split.values[0][message] == pytest.approx(whole.values[0][message], abs=1e-4)


def test_ids_need_not_be_unique(judge: SteerModel) -> None:
    conversations = [chain("why", "because"), chain("how", "by rivers")]
    both = Scorer(judge, FP32).score(conversations).values
    single = [Scorer(judge, FP32).score([item]).values[0] for item in conversations]
    assert both[0][1] == pytest.approx(single[0][1], abs=1e-4)
    assert both[1][1] == pytest.approx(single[1][1], abs=1e-4)
    assert both[0][1] != pytest.approx(both[1][1], abs=1e-3)


def test_conversations_without_responses(judge: SteerModel) -> None:
    scorer = Scorer(judge, FP32)
    assert scorer.score([]).values == []
    assert scorer.score([chain("only a question")]).values == [{}]
    mixed = scorer.score([chain("only a question"), chain("why", "because"), chain("another")])
    assert [list(values) for values in mixed.values] == [[], [1], []]


def test_unanswered_branches_are_not_computed(judge: SteerModel) -> None:
    answered = chain("why", "because")
    asked_on = replace(answered, messages=(*answered.messages, Message("user", "a long question " * 20, 1)))
    scorer = Scorer(judge, FP32)
    assert scorer.score([asked_on]).report.tokens == scorer.score([answered]).report.tokens


def test_too_long_loses_oldest_turns(judge: SteerModel) -> None:
    long = chain("first question " * 10, "first answer " * 10, "why", "because", system="Be brief.")
    scored = Scorer(judge, ScoreSettings(context=200, precision="fp32")).score([long])
    assert (scored.report.truncated, scored.report.dropped) == (1, 1)
    cut = Scorer(judge, FP32).score([chain("why", "because", system="Be brief.")])
    assert list(scored.values[0]) == [3]
    assert scored.values[0][3] == pytest.approx(cut.values[0][1], abs=1e-4)


def test_network_is_left_as_it_was(judge: SteerModel) -> None:
    ids = torch.tensor([[1, 2, 3]])
    before = judge.network(ids).logits
    Scorer(judge, FP32).score([chain("why", "because")])
    assert torch.equal(judge.network(ids).logits, before)


def test_bf16_is_close(judge: SteerModel) -> None:
    conversations = random_trees(5, seed=2)
    exact = Scorer(judge, FP32).score(conversations).values
    rough = Scorer(judge, ScoreSettings(precision="bf16")).score(conversations).values
    for left, right in zip(exact, rough, strict=True):
        for message in left:
            assert right[message] == pytest.approx(left[message], abs=0.3)
    assert exact != rough


def test_packs_are_reported_as_they_go(judge: SteerModel) -> None:
    seen: list[int] = []
    scored = Scorer(judge, ScoreSettings(context=512, pack_tokens=512)).score(
        random_trees(20), lambda pack: seen.append(pack.size)
    )
    assert len(seen) > 2
    assert sum(seen) == scored.report.tokens


def test_context_is_that_of_training(judge: SteerModel) -> None:
    assert Scorer(judge).context == 1024
    info = replace(judge.info, provenance={"settings": {"context": 300}})
    assert trained_context(info) == 300
    assert Scorer(replace(judge, info=info), ScoreSettings(pack_tokens=64)).pack_tokens == 300


def test_refusals(judge: SteerModel, tmp_path: Path) -> None:
    save_tiny_base(tmp_path)
    with pytest.raises(ModelError, match="needs an attribute-model, this is a policy"):
        Scorer(new_model("policy", tmp_path, STEERLM))
    with pytest.raises(ConfigError, match="beyond the 2048 tokens"):
        Scorer(judge, ScoreSettings(context=4096))


def test_scores_that_are_not_finite_are_refused(judge: SteerModel) -> None:
    with torch.no_grad():
        head_of(judge.network).weight[2].fill_(float("nan"))
    with pytest.raises(ModelError, match=r"conversation chain, message 1: .*not finite"):
        Scorer(judge).score([chain("why", "because")])


@given(st.floats(-1e6, 1e6))
def test_stored_values_are_valid_ratings(value: float) -> None:
    schema = Schema((Attribute("quality"), Attribute("mood", low=-2, high=2, default=0)))
    stored = on_scale(schema, {"quality": value, "mood": value})
    schema.check(stored)
    assert all(abs(stored[item.name] - min(max(value, item.low), item.high)) <= 5.0001e-5 for item in schema)
    assert "-0.0," not in f"{stored['mood']},"
    assert all(isinstance(item, float) for item in stored.values())
