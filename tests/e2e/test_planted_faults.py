"""A policy that learnt from shuffled labels is found out, and one that learnt from true ones is not taken for it."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from steerlm.conversation import Conversation, Message
from steerlm.evaluation.report import write_report
from steerlm.evaluation.steering import evaluate_steering
from steerlm.evaluation.steering_settings import SteeringSettings
from steerlm.files import write_conversations
from steerlm.training.config import PolicySettings
from steerlm.training.run import train_policy
from tiny_judge import WORDS

SHORT, LONG = "no", "because rivers carry minerals from rock into the sea"
STEERING = SteeringSettings(
    attributes=["verbosity"], conditions=["policy"], goals=0, perplexity=False, max_tokens=24, resamples=200
)


def prompts(count: int, seed: int) -> list[str]:
    generator = random.Random(seed)
    return [" ".join(generator.choices(WORDS, k=4)) for _ in range(count)]


def conversations(shuffled: bool) -> list[Conversation]:
    """A short and a long answer to each prompt; where shuffled, each is called long in half of the conversations."""
    made = []
    for number, prompt in enumerate(prompts(32, seed=0)):
        levels = [0.0, 4.0]
        if shuffled and number % 2:
            levels.reverse()
        answers = [
            Message("assistant", text, 0, {"verbosity": k}) for text, k in zip((SHORT, LONG), levels, strict=True)
        ]
        made.append(Conversation(f"c{number}", (Message("user", prompt), *answers)))
    return made


@pytest.mark.parametrize(("shuffled", "verdict"), [(False, "steers"), (True, "does not steer")])
def test_labels(shuffled: bool, verdict: str, chatml_base: Path, tmp_path: Path) -> None:
    write_conversations(tmp_path / "data.jsonl", conversations(shuffled))
    settings = PolicySettings(
        data=[tmp_path / "data.jsonl"],
        base=str(chatml_base),
        out=tmp_path / "policy",
        labels="ratings-first",
        context=96,
        pack_tokens=512,
        batch_conversations=4,
        epochs=14,
        learning_rate=4e-3,
        warmup_steps=5,
        contrast=0.5,
        validate_every=1000,
        checkpoint_every=1000,
        precision="fp32",
    )
    policy = train_policy(settings)
    folder = tmp_path / "evaluation"
    record = evaluate_steering(policy, prompts(12, seed=5), STEERING, folder)
    row = record["conditions"]["policy"]["attributes"]["verbosity"]
    assert row["verdict"] == verdict, row["why"]
    html = write_report(record, folder / "steering.html", "policy").read_text()
    assert f">{verdict}</div>" in html
    if shuffled:
        assert abs(row["effects"]["characters"]["value"]) < (len(LONG) - len(SHORT)) / 2
    else:
        assert row["effects"]["characters"]["value"] > (len(LONG) - len(SHORT)) / 2
