"""The perplexity of answers: by hand from the logits, and how packs reach the network."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks.measure import PassLengths
from scripted_policy import PROMPTS
from steerlm.attributes import STEERLM
from steerlm.conversation import Conversation
from steerlm.evaluation import perplexity
from steerlm.evaluation.answers import PERPLEXITY, Answer
from steerlm.evaluation.asks import sweep
from steerlm.evaluation.conditions import PolicyCondition, answer_tree
from steerlm.evaluation.measuring import Instruments, measure
from steerlm.models.load import SteerModel, new_model
from tiny import TOKENIZERS, save_base


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


@pytest.mark.parametrize(
    ("tokenizer", "dialect", "kept"),
    [
        ("qwen", "nemo", "Rivers carry salt.\n"),
        ("gpt2", "nemo", "Rivers carry salt."),
        ("llama2", "chatml", "Rivers carry salt."),
        ("metaspace", "llama3", "Rivers carry salt."),
    ],
)
def test_of_a_cut_answer_the_text_counts_and_nothing_else(
    tmp_path: Path, tokenizer: str, dialect: str, kept: str
) -> None:
    """The newline that closes a response may be joined to its last token; an end signal is spelled out otherwise within
    a text than alone.
    """
    base = save_base(tmp_path / "base", TOKENIZERS[tokenizer]())
    model = new_model("policy", base, STEERLM, dialect, marker_tokens=False)
    conversation = answer_tree("", PROMPTS[0], ["Rivers carry salt.", "It is."])
    tree = model.renderer.tree(conversation, "policy")
    place = next(place for place, segment in enumerate(tree.segments) if segment.message == 1)
    ids, count = tree.path_ids(place), len(tree.segments[place].trained())
    opening = len(ids) - count
    [stop] = [
        k for k in range(opening, len(ids)) if model.renderer.tokenizer.decode(ids[opening:k]).lstrip(" ") == kept
    ]
    with torch.no_grad():
        likely_TV = model.network(torch.tensor([ids])).logits[0].double().log_softmax(-1)
    nll = [-likely_TV[k - 1, ids[k]].item() for k in range(opening, stop)]
    [found] = perplexity.perplexities(model, [conversation], 256)
    assert found[1].cut == pytest.approx(math.exp(np.mean(nll)), rel=1e-4)
