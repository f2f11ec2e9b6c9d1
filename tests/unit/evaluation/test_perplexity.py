"""The perplexity of answers: by hand from the logits, and how packs reach the network."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch

from benchmarks.measure import PassLengths
from scripted_policy import PROMPTS
from steerlm.conversation import Conversation
from steerlm.evaluation import perplexity
from steerlm.evaluation.answers import PERPLEXITY, Answer
from steerlm.evaluation.asks import sweep
from steerlm.evaluation.conditions import PolicyCondition, answer_tree
from steerlm.evaluation.measuring import Instruments, measure
from steerlm.models.load import SteerModel


def test_passes_in_bfloat16_are_of_few_lengths_on_a_cpu(
    policy: SteerModel, conversations: Callable[..., list[Conversation]], monkeypatch: pytest.MonkeyPatch
) -> None:
    for dtype, all_even in ((torch.float32, False), (torch.bfloat16, True)):
        monkeypatch.setattr(perplexity, "pick_precision", lambda *_, dtype=dtype: dtype)
        with PassLengths() as passes:
            perplexity.perplexities(policy, conversations(4, seed=2), 512)
        assert all(length % 64 == 0 for length in passes.lengths) is all_even


def test_the_end_counts_where_it_was_written(policy: SteerModel) -> None:
    """Three answers of one text and prompt, of which one was cut: by hand it is the mean over the text's tokens alone.
    A fourth is longer than the context, and a fifth was cut before it had a word.
    """
    asks = sweep(policy.schema, ["verbosity"], 1)
    condition = PolicyCondition(policy)
    text = "Rivers carry salt."
    made = [
        *(Answer(text, 9, cut) for cut in (False, True, False)),
        *(Answer("salt " * 400, 9, cut=False), Answer("", 9, cut=True)),
    ]
    answers = dict(zip(map(condition.key, asks), made, strict=True))
    measured = measure(condition, asks, answers, [(PROMPTS[0],)], "", Instruments(base=policy, context=256))
    tree = policy.renderer.tree(answer_tree("", PROMPTS[0], [text]), "policy")
    ids, count = tree.path_ids(len(tree.segments) - 1), len(tree.segments[-1].trained())
    assert ids[-1:] == list(policy.renderer.end_ids)
    with torch.no_grad():
        likely_TV = policy.network(torch.tensor([ids])).logits[0].double().log_softmax(-1)
    nll_T = [-likely_TV[place - 1, ids[place]].item() for place in range(len(ids) - count, len(ids))]
    ended, cut = (math.exp(np.mean(part)) for part in (nll_T, nll_T[:-1]))
    assert abs(ended - cut) > 1e-3 * ended
    assert measured.columns[PERPLEXITY][:3].tolist() == pytest.approx([ended, cut, ended], rel=1e-4)
    assert measured.unscored()[PERPLEXITY].tolist() == [False, False, False, True, True]
