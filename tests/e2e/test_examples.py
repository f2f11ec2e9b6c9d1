"""What is shipped runs: the example, every recipe, the documentation of the commands."""

from __future__ import annotations

import runpy
from pathlib import Path
from typing import Any

import pytest
import yaml

from steerlm.conversation import Conversation
from steerlm.files import load_conversations, write_conversations
from steerlm.quickstart import QuickstartSettings
from steerlm.recipes import FOLDER
from steerlm.sources import import_conversations
from steerlm.sources.bundled import SAMPLE, held_out_prompts
from steerlm.training.config import AttributeSettings, PolicySettings, load_settings
from tiny import TOKENIZERS, save_base

ROOT = Path(__file__).parents[2]


def test_minimal_example(tmp_path: Path) -> None:
    base = save_base(tmp_path / "base", TOKENIZERS["chatml"](), max_position_embeddings=1024)
    write_conversations(tmp_path / "rated.jsonl", load_conversations(SAMPLE)[:12])
    example = runpy.run_path(str(ROOT / "examples" / "minimal.py"))
    answers = example["main"](tmp_path / "rated.jsonl", tmp_path / "out", base=str(base), max_steps=1)
    assert list(answers) == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("name", sorted(path.stem for path in FOLDER.glob("*.yaml")))
def test_recipes_are_valid(name: str) -> None:
    values = yaml.safe_load((FOLDER / f"{name}.yaml").read_text())
    kinds: list[Any] = (
        [QuickstartSettings]
        if "steering" in values
        else [AttributeSettings if "attribute-model" in name else PolicySettings]
    )
    settings = load_settings(kinds[0], name, {})
    if isinstance(settings, QuickstartSettings):
        AttributeSettings(**settings.attributes)
        PolicySettings(**settings.policy)


def test_papers_figures_are_in_their_recipes(real_data: Path) -> None:
    """FACTS: arXiv 2311.09528, section 4.4: 800 steps of 128 samples, constant 5e-6, for both models.

    A sample is a thread, a conversation of ours a tree: 48,800 threads of Open Assistant, 37,120 responses to 10,459
    prompts of HelpSteer. About two epochs of the first, less 5% held out, are the policy's training.
    """
    judge = load_settings(AttributeSettings, "llama2-13b-attribute-model", {})
    policy = load_settings(PolicySettings, "llama2-70b-policy", {})
    for settings in (judge, policy):
        assert settings.max_steps == 800
        assert (settings.learning_rate, settings.schedule) == (5e-6, "constant")
        assert settings.context == 4096
    assert "70b" in policy.base
    trees = list(import_conversations("oasst", real_data / "oasst1" / "messages.jsonl").conversations)
    threads = sum(tree.threads_through[root] for tree in trees for root in tree.roots) / len(trees)
    both = (48_800 + 37_120) / (48_800 / threads + 10_459)
    assert policy.batch_conversations * threads == pytest.approx(128, rel=0.02)
    assert judge.batch_conversations * both == pytest.approx(128, rel=0.02)
    assert 800 * policy.batch_conversations * threads / (0.95 * 48_800) == pytest.approx(2, abs=0.25)
    for path in FOLDER.glob("llama2-*.yaml"):
        steps = yaml.safe_load(path.read_text(encoding="utf-8"))
        same = judge if "attribute" in path.name else policy
        assert (steps["max_steps"], steps["batch_conversations"]) == (800, same.batch_conversations)


def test_the_sample_is_what_its_card_says() -> None:
    conversations: list[Conversation] = load_conversations(SAMPLE)
    assert len(conversations) >= 96
    rated = [c for c in conversations if all(c.messages[index].ratings for index in c.responses)]
    bare = [c for c in conversations if not any(message.ratings for message in c.messages)]
    assert conversations == [*rated, *bare]
    assert 0.2 < len(bare) / len(conversations) < 0.3
    names = {name for c in rated for index in c.responses for name in c.messages[index].ratings}
    assert len(names) == 9
    assert all(len(c.messages[index].ratings) == 9 for c in rated for index in c.responses)
    assert all(3 <= len(c.children[0]) <= 5 for c in conversations)
    prompts = held_out_prompts()
    assert len(prompts) >= 40
    assert not set(prompts) & {message.text for c in conversations for message in c.messages}


def test_cli_page_is_current() -> None:
    page = runpy.run_path(str(ROOT / "docs" / "make_cli.py"))
    assert (ROOT / "docs" / "cli.md").read_text(encoding="utf-8") == page["document"]()
