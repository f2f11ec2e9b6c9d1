"""A saved attribute model scores the same in `AutoModelForSequenceClassification` as through our trees."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from passes import make_packs
from references import thread_to
from steerlm.attention import use_plain_attention, use_tree_attention
from steerlm.attributes import STEERLM
from steerlm.conversation import Conversation
from steerlm.models.load import load_model, new_model
from steerlm.training.attribute_model import predict
from steerlm.training.task import Batch
from strategies import random_conversation
from tiny import spread

BASES = ["chatml_base", "gpt2_base", "sentencepiece_base"]


@pytest.fixture(params=BASES)
def directory(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """One attribute model for each architecture, tokenizer and dialect."""
    model = new_model("attribute-model", request.getfixturevalue(request.param), STEERLM)
    spread(model.network)
    model.save(tmp_path / "model")
    return tmp_path / "model"


def trees() -> list[Conversation]:
    generator = random.Random(1)
    return [random_conversation(generator, f"tree-{number}", 9) for number in range(4)]


def our_scores(directory: Path) -> dict[tuple[str, int], list[float]]:
    model = load_model(directory, "attribute-model")
    use_tree_attention(model.network, "segments")
    found = {}
    for pack in make_packs([model.renderer.tree(item, "score") for item in trees()], 512, 700):
        with torch.no_grad():
            scores_RA = predict(model, Batch.of(pack, torch.device("cpu")))
        for response, scores in zip(pack.responses, scores_RA.tolist(), strict=True):
            found[response.conversation, response.message] = scores
    use_plain_attention(model.network)
    return found


def messages(conversation: Conversation) -> list[dict[str, str]]:
    system = [{"role": "system", "content": conversation.system}] if conversation.system else []
    return [*system, *({"role": item.role, "content": item.text} for item in conversation.messages)]


def test_one_by_one(directory: Path) -> None:
    bare = AutoModelForSequenceClassification.from_pretrained(directory).eval()
    tokenizer = AutoTokenizer.from_pretrained(directory)
    scores = our_scores(directory)
    assert len(scores) > 10
    for conversation in trees():
        for index in conversation.responses:
            ids = tokenizer.apply_chat_template(
                messages(thread_to(conversation, index)), tokenize=True, return_tensors="pt", return_dict=False
            )
            with torch.no_grad():
                found = bare(ids).logits[0].tolist()
            assert found == pytest.approx(scores[conversation.id, index], abs=1e-4)


@pytest.mark.parametrize("side", ["left", "right"])
def test_in_a_padded_batch(directory: Path, side: str) -> None:
    """The score is read at the last token that is not padding, on whichever side that is."""
    bare = AutoModelForSequenceClassification.from_pretrained(directory).eval()
    tokenizer = AutoTokenizer.from_pretrained(directory, padding_side=side)
    scores = our_scores(directory)
    keys = sorted(scores)
    by_id = {conversation.id: conversation for conversation in trees()}
    batch = tokenizer.apply_chat_template(
        [messages(thread_to(by_id[name], index)) for name, index in keys],
        tokenize=True,
        padding=True,
        return_tensors="pt",
        return_dict=True,
    )
    assert (batch["attention_mask"] == 0).any()
    inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
    # Padding on the left moves positions, unless they are given.
    inputs["position_ids"] = (batch["attention_mask"].cumsum(-1) - 1).clamp_min(0)
    with torch.no_grad():
        found = bare(**inputs).logits.tolist()
    for key, values in zip(keys, found, strict=True):
        assert values == pytest.approx(scores[key], abs=1e-4)


def test_scores_differ_between_responses(directory: Path) -> None:
    """Else the tests above would compare constants."""
    table = torch.tensor(list(our_scores(directory).values()))
    assert (table.std(dim=0) > 0.05).all()
