"""`steerlm plan`: what it prints, what it refuses, and that its advice is good."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Any

import pytest

from steerlm.cli.main import run
from steerlm.recipes import FOLDER
from tiny import llama

TRAINED = [path.stem for path in sorted(FOLDER.glob("llama2-*.yaml"))]


@pytest.fixture
def base(tmp_path: Path) -> str:
    """The configuration of a model, and nothing else of it."""
    shape = {"hidden_size": 256, "intermediate_size": 704, "num_hidden_layers": 6, "num_attention_heads": 8}
    llama(4000, **shape).config.save_pretrained(tmp_path / "base")
    return str(tmp_path / "base")


def plan(capsys: pytest.CaptureFixture[str], words: str) -> dict[str, Any]:
    assert run(["plan", *shlex.split(words), "--json"]) == 0
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return found


def test_a_plan_is_shown(base: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["plan", "--kind", "policy", "--base", base, "--max-steps", "10", "--gpus", "2"]) == 0
    shown = capsys.readouterr().out
    assert "policy on" in shown
    assert "2 GPUs of 79 GiB" in shown
    for line in (
        "parameters",
        "weights",
        "AdamW's moments",
        "gradients",
        "activations",
        "work",
        "logits",
        "reserve",
        "total",
    ):
        assert f"\n{line} " in shown
    assert "10 steps" in shown
    assert shown.endswith("of 79 GiB.\n")
    assert "It fits" in shown


def test_figures_are_for_programs_too(base: str, capsys: pytest.CaptureFixture[str]) -> None:
    found = plan(
        capsys, f"--kind policy --base {base} --batch-conversations 4 --max-steps 10 --tokens-per-conversation 500"
    )
    assert found["kind"] == "policy"
    assert found["fits"] is True
    assert found["changes_that_fit"] == []
    assert found["speed"]["step_tokens"] == pytest.approx(2000, rel=0.6)
    assert found["workload"]["tokens_per_conversation"] == pytest.approx(500, rel=0.01)
    sizes = found["bytes_per_rank"]
    assert sizes["logits"] == sizes["loss"] - sizes["kept"] > 0
    peak = sizes["peak"]
    assert found["total_gib"] == pytest.approx(peak / 2**30 + found["hardware"]["reserve"])


@pytest.mark.parametrize(
    ("words", "rate"),
    [
        ("", 312),
        ("--precision bf16 --gpu h100", 989),
        ("--precision fp32", 19.5),
        ("--precision fp32 --gpu h200", 67),
        ("--precision fp32 --tflops 100", 100),
    ],
)
def test_the_rate_is_that_of_the_precision(
    base: str, capsys: pytest.CaptureFixture[str], words: str, rate: float
) -> None:
    found = plan(capsys, f"--kind policy --base {base} --utilisation 0.5 {words}")
    assert found["hardware"]["tflops"] == rate
    speed = found["speed"]
    assert speed["tokens_per_second"] == pytest.approx(rate * 1e12 * 0.5 / speed["flops_per_token"])


def test_advice_is_good(base: str, capsys: pytest.CaptureFixture[str]) -> None:
    """What is advised is given back as flags, and then it fits."""
    words = f"--kind policy --base {base} --reserve 0.01"
    total = plan(capsys, words)["total_gib"]
    words += f" --gpu-memory {0.95 * total}"
    first = plan(capsys, words)
    assert not first["fits"]
    (change,) = first["changes_that_fit"]
    assert change["settings"]
    assert run(["plan", *shlex.split(words)]) == 0
    line = capsys.readouterr().out.splitlines()[-1]
    assert line.startswith("It does not fit: ")
    flags = line.split("It does with ")[1].split(" (")[0]
    again = plan(capsys, f"{words} {flags}")
    assert again["fits"]
    assert again["total_gib"] == pytest.approx(change["total"])


def test_nothing_makes_it_fit(base: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["plan", "--kind", "attributes", "--base", base, "--gpu-memory", "0.02", "--reserve", "0.01"]) == 0
    assert "take a smaller base model" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ("--base smollm2", "say which training this is for, with --kind policy or attributes"),
        ("--contrast 0.5 --head random", "say which training this is for"),
        ("quickstart", "say which training this is for"),
        ("llama2-7b-policy --head random", "say which training this is for"),
        ("llama2-7b-policy --gpus 6 --tensor-parallel 4", "tensor_parallel=4 does not divide 6 GPUs"),
        ("llama2-70b-adapter --gpus 8", "a base in 4 bits is held by one GPU"),
        ("llama2-7b-policy --context 8192", "cannot hold a path of context=8192"),
        ("nothing", "no such recipe"),
    ],
)
def test_what_cannot_be_planned(words: str, says: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["plan", *shlex.split(words)]) == 2
    assert says in capsys.readouterr().err


def test_a_model_that_cannot_be_trained_is_not_planned(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Llama's layers with an attention that is no plain one would mix the branches of a tree."""
    config = llama(100).config
    config.layer_types = ["full_attention", "chunked_attention"]
    config.save_pretrained(tmp_path)
    assert run(["plan", "--kind", "policy", "--base", str(tmp_path)]) == 2
    assert "would mix the branches of a tree" in capsys.readouterr().err


@pytest.mark.parametrize("recipe", TRAINED)
def test_our_recipes_fit_on_what_they_are_for(recipe: str, capsys: pytest.CaptureFixture[str]) -> None:
    """One node of eight 80 GB cards, one such card for an adapter, four nodes for all weights of 70B."""
    gpus = {"llama2-70b-policy": 32, "llama2-70b-adapter": 1}.get(recipe, 8)
    found = plan(capsys, f"{recipe} --gpus {gpus}")
    assert found["fits"]
    assert found["speed"]["steps"] == 800
    assert found["kind"] == ("attribute-model" if "attribute" in recipe else "policy")


def test_the_document_shows_every_recipe() -> None:
    text = (Path(__file__).parents[3] / "docs" / "scaling.md").read_text(encoding="utf-8")
    assert TRAINED
    for recipe in TRAINED:
        assert f"| `{recipe}" in text
        if "adapter" not in recipe:  # on one node of 8 GPUs and on 16
            assert f"| `{recipe} --gpus 8`" in text
            assert f"| `{recipe} --gpus 128 " in text
