"""What a model knows: the attributes that its data's labels carry, and no others."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jinja2
import pytest

from steerlm.attributes import STEERLM
from steerlm.conversation import Conversation, Message
from steerlm.errors import DataError, SchemaError
from steerlm.files import write_conversations
from steerlm.models.load import head_of, load_model
from steerlm.steering import asked_values
from steerlm.training.config import AttributeSettings, PolicySettings, TrainSettings
from steerlm.training.run import schema_of_labels, train_attribute_model, train_policy
from steerlm.training.survey import Survey


def rated(name: str, *answers: dict[str, float], predicted: dict[str, float] | None = None) -> Conversation:
    """One prompt and an answer for each set of ratings."""
    given = [Message("assistant", f"answer {k}", 0, ratings, predicted or {}) for k, ratings in enumerate(answers)]
    return Conversation(name, (Message("user", "Why?"), *given))


PARTLY = [rated(f"c{k}", {"verbosity": float(k % 5), "humor": 1.0}, {"humor": float(k % 3)}) for k in range(6)]
# Held out, and rated on an attribute that is in no conversation to train on.
OTHER = [rated("d", {"humor": 2.0, "quality": 3.0}, {"quality": 1.0})]


@pytest.fixture
def partly(tmp_path: Path, chatml_base: Path) -> dict[str, Any]:
    write_conversations(tmp_path / "train.jsonl", PARTLY)
    write_conversations(tmp_path / "held-out.jsonl", OTHER)
    return {
        "data": [tmp_path / "train.jsonl"],
        "validation": [tmp_path / "held-out.jsonl"],
        "base": str(chatml_base),
        "out": tmp_path / "model",
        "context": 128,
        "pack_tokens": 256,
        "max_steps": 1,
        "precision": "fp32",
    }


def test_a_policy_is_asked_only_for_what_its_data_label(
    partly: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    train_policy(PolicySettings(**partly, labels="ratings-first", contrast=0.5, defaults={"verbosity": 1}))
    said = " ".join(capsys.readouterr().err.split())
    assert "no label of quality, toxicity, creativity, helpfulness, correctness, coherence, complexity in" in said
    policy = load_model(partly["out"], "policy")
    assert policy.schema.names == ("humor", "verbosity")
    assert asked_values(policy.schema, {}) == {"humor": 0, "verbosity": 1}
    with pytest.raises(SchemaError, match="unknown attribute 'quality'; this model was trained on labels of humor, v"):
        asked_values(policy.schema, {"quality": 4})
    tokenizer = policy.renderer.tokenizer
    ask: dict[str, Any] = {"conversation": [{"role": "user", "content": "Hi"}], "add_generation_prompt": True}
    prompt = tokenizer.apply_chat_template(**ask, tokenize=False)
    assert prompt.endswith("assistant\nhumor:0,verbosity:1\n")
    with pytest.raises(
        jinja2.TemplateError, match="unknown attribute quality; this model was trained on labels of hum"
    ):
        tokenizer.apply_chat_template(**ask, attributes={"quality": 4})
    assert "quality:4" not in tokenizer.get_vocab()


def test_an_attribute_model_predicts_only_what_its_data_rate(partly: dict[str, Any]) -> None:
    train_attribute_model(AttributeSettings(**partly))
    judge = load_model(partly["out"], "attribute-model")
    assert judge.schema.names == ("humor", "verbosity")
    assert head_of(judge.network).weight.shape[0] == 2
    assert list(judge.info.metrics["attributes"]) == ["humor"]
    assert judge.info.metrics["attributes"]["humor"]["n"] == 1


def test_a_weight_for_an_attribute_that_nobody_rated(partly: dict[str, Any]) -> None:
    with pytest.raises(DataError, match="loss_weights names quality, which no response is rated on"):
        train_attribute_model(AttributeSettings(**partly, loss_weights={"quality": 2.0}))


@pytest.mark.parametrize(
    ("settings", "names"),
    [
        (AttributeSettings(), ("humor", "verbosity")),
        (PolicySettings(labels="ratings-first"), ("humor", "verbosity", "quality")),
        (PolicySettings(labels="predicted"), ("quality",)),
    ],
)
def test_labels_are_what_the_training_reads(settings: TrainSettings, names: tuple[str, ...]) -> None:
    found = schema_of_labels(settings, STEERLM, Survey.of([*PARTLY, rated("e", {}, predicted={"quality": 2.0})]))
    assert found == STEERLM.only(names)


def test_ratings_of_prompts_do_not_count() -> None:
    conversation = Conversation("c", (Message("user", "Why?", None, {"toxicity": 1.0}), Message("assistant", "a", 0)))
    assert schema_of_labels(AttributeSettings(), STEERLM, Survey.of([conversation, *PARTLY])).names == (
        "humor",
        "verbosity",
    )
