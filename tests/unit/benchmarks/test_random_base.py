"""A base model with random weights, as large as is asked for."""

from __future__ import annotations

from pathlib import Path

import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer

from benchmarks.random_base import Shape, main
from steerlm.errors import ConfigError
from tiny import TOKENIZERS, save_base


def test_a_base_has_the_sizes_that_were_asked_for_and_replaces_nothing(tmp_path: Path) -> None:
    save_base(tmp_path / "tokens", TOKENIZERS["chatml"](), "llama")
    shape = Shape(
        tokenizer=str(tmp_path / "tokens"), hidden=32, feed_forward=48, layers=3, heads=4, key_value_heads=2, context=64
    )
    out = tmp_path / "some" / "base"
    main(out, shape=shape)
    tokenizer, network = AutoTokenizer.from_pretrained(out), AutoModelForCausalLM.from_pretrained(out)
    vocabulary = len(tokenizer)
    attention, feed_forward, norms = 2 * 32 * 32 + 2 * 32 * 16, 3 * 32 * 48, 2 * 32
    assert network.num_parameters() == 2 * vocabulary * 32 + 3 * (attention + feed_forward + norms) + 32
    assert [entry.name for entry in out.parent.iterdir()] == ["base"]
    (out / "mine.txt").write_text("kept")
    with pytest.raises(ConfigError, match="exists; remove it"):
        main(out, shape=shape)
    assert (out / "mine.txt").read_text() == "kept"
