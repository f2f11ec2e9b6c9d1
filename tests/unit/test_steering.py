"""From asked values to prompts."""

from __future__ import annotations

from pathlib import Path

import pytest

from steerlm.attributes import STEERLM
from steerlm.errors import ModelError, SchemaError
from steerlm.models.load import load_model, new_model
from steerlm.steering import Turn, asked_values, distance, nearest, parse_assignments, prompt_ids
from tiny import TOKENIZERS, save_base


def test_defaults_with_asked_on_top_and_none_leaving_out() -> None:
    values = asked_values(STEERLM, {"verbosity": 1, "humor": None})
    assert values == {name: value for name, value in {**STEERLM.defaults, "verbosity": 1}.items() if name != "humor"}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("verbosity=7", "levels 0 to 4 of verbosity"),
        ("verbosity=-1", "levels 0 to 4"),
        ("verbosity=much", "whole number from 0 to 4"),
        ("verbosity=1.5", "whole number"),
        ("wit=3", "unknown attribute 'wit'; this model was trained on labels of quality"),
        ("verbosity", "attribute=value"),
    ],
)
def test_bad_assignments_say_what_to_do(text: str, message: str) -> None:
    with pytest.raises(SchemaError, match=message):
        parse_assignments(STEERLM, [text])


def test_assignments() -> None:
    assert parse_assignments(STEERLM, ["verbosity=1", " humor = 4 ", "toxicity=none"]) == {
        "verbosity": 1,
        "humor": 4,
        "toxicity": None,
    }


def test_prompt_text_with_history(tmp_path: Path) -> None:
    """FACTS of the format: every assistant turn keeps the label line that it was asked with."""
    model = new_model("policy", save_base(tmp_path, TOKENIZERS["gpt2"]()), STEERLM, "nemo")
    ids = prompt_ids(model, "And now?", {"humor": 4}, [Turn("Hi", "Hello!", {"verbosity": 0})], system="Be kind.")
    assert model.renderer.tokenizer.decode(ids) == (
        "<extra_id_0>System\nBe kind.\n<extra_id_1>User\nHi\n<extra_id_1>Assistant\n<extra_id_2>verbosity:0\nHello!\n"
        "<extra_id_1>User\nAnd now?\n<extra_id_1>Assistant\n<extra_id_2>humor:4\n"
    )


def test_not_a_steerlm_model(tmp_path: Path) -> None:
    base = save_base(tmp_path / "base", TOKENIZERS["chatml"]())
    with pytest.raises(ModelError, match=r"has no steerlm\.json"):
        load_model(base, "policy")
    with pytest.raises(ModelError, match="no such directory"):
        load_model(tmp_path / "nowhere", "policy")
    new_model("policy", base, STEERLM).save(tmp_path / "policy")
    with pytest.raises(ModelError, match="is a policy, where an attribute-model is needed"):
        load_model(tmp_path / "policy", "attribute-model")


def test_nearest() -> None:
    """Distances 1/4, none, 1/8 and 1/8 of the scale: the first of the nearest."""
    asked = {"humor": 4, "verbosity": 0}
    measured = [
        {"humor": 3.0, "verbosity": 1.0},
        None,
        {"humor": 4.0, "verbosity": 1.0},
        {"humor": 3.0, "verbosity": 0.0},
    ]
    assert nearest(STEERLM, asked, measured) == 2
    assert distance(STEERLM, asked, measured[0]) == pytest.approx(0.25)
    assert distance(STEERLM, asked, {"quality": 1.0}) == float("inf")
