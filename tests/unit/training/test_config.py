"""Settings: one default each, unknown keys refused, contradictions named."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from steerlm.attributes import STEERLM
from steerlm.errors import ConfigError, SchemaError
from steerlm.training.config import AttributeSettings, PolicySettings, TrainSettings, checked, load_settings


@pytest.fixture
def recipe(tmp_path: Path) -> Any:
    def write(text: str) -> Path:
        path = tmp_path / "recipe.yaml"
        path.write_text(text, encoding="utf-8")
        return path

    return write


def test_flags_go_over_the_recipe_and_the_recipe_over_defaults(recipe: Any) -> None:
    path = recipe("epochs: 3\nlearning_rate: 1e-4\nlabels: ratings-first\n")
    settings = load_settings(PolicySettings, path, {"epochs": 0.5})
    assert (settings.epochs, settings.learning_rate, settings.labels) == (0.5, 1e-4, "ratings-first")
    assert settings.context == TrainSettings().context


def test_an_empty_recipe_is_all_defaults(recipe: Any) -> None:
    assert load_settings(AttributeSettings, recipe("# nothing\n"), {}) == AttributeSettings()
    assert load_settings(AttributeSettings, None, {}) == AttributeSettings()


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"lerning_rate": 1}, "lerning_rate: no such setting; did you mean learning_rate"),
        ({"optimizer": {"lr": 1}}, "optimizer: no such setting; there are data, out, .*learning_rate"),
        ({"learning_rate": "fast"}, "learning_rate: must be a number, not 'fast'"),
        ({"data": "a.jsonl"}, r"data: must be a list, such as \[a, b\], not 'a.jsonl'"),
        ({"compile": "sometimes"}, "compile: must be true or false, not 'sometimes'"),
        ({"base": 7}, r"base: must be text \(put it in quotes\), not 7"),
        ({"defaults": [1]}, "defaults: must be a mapping of names to values, not "),
        (
            {"schedule": "constant", "min_learning_rate": 1e-5},
            "min_learning_rate=1e-05 is where a cosine schedule ends",
        ),
        ({"batch_tokens": 512, "batch_conversations": 4}, "batch_conversations=4 both say what a step is made of"),
        ({"contrast_sharpness": 0.5}, "contrast_sharpness=0.5 shapes the contrastive term, which has no weight"),
        ({"rank_attributes": ["humor"], "labels": "ratings-first"}, "rank_attributes ranks predicted values"),
        ({"marker_tokens": False, "level_tokens": False, "new_token_rate": 5}, "new_token_rate=5 is for added tokens"),
        ({"pack_tokens": 512, "context": 1024}, "pack_tokens=512 cannot hold a path of context=1024"),
        ({"learning_rate": 1e-5, "min_learning_rate": 1e-4}, "min_learning_rate=0.0001 is above learning_rate=1e-05"),
        ({"betas": [0.9, 1.0]}, r"betas must lie in \[0, 1\)"),
        ({"betas": [0.9]}, "betas"),
        ({"epochs": 0}, "epochs: must be more than 0, not 0"),
        ({"epochs": float("inf")}, "epochs: must be a finite number, not inf"),
        ({"learning_rate": float("nan")}, "learning_rate"),
        ({"context": 8}, "context"),
        ({"context": 1024.5}, "context: must be a whole number, not 1024.5"),
        ({"validation_fraction": 1}, "validation_fraction"),
        ({"precision": "fp16"}, "precision: 'fp16' is unknown; choose 'auto', 'fp32' or 'bf16'"),
        ({"dialect": "alpaca"}, "dialect"),
        ({"label_dropout": 1.0}, "label_dropout"),
        ({"labels": "ratings"}, "labels"),
        ({"defaults": {"verbosity": 1.5}}, "defaults.verbosity"),
        ({"keep_checkpoints": 0}, "keep_checkpoints"),
        ({"lora_rank": 0}, "lora_rank"),
        (
            {"lora_dropout": 0.1, "quantize": "4bit"},
            "lora_dropout, quantize without an adapter to train; set lora_rank",
        ),
        ({"lora_rank": 8, "lora_targets": ["q_proj", "all-linear"]}, "lora_targets names all-linear and others"),
        ({"lora_rank": 8, "lora_targets": []}, "lora_targets: has too few values"),
        ({"lora_rank": 8, "lora_variant": "dora", "tensor_parallel": 2}, "lora_variant=dora needs whole matrices"),
        ({"lora_rank": 8, "quantize": "8bit"}, "quantize: '8bit' is unknown; choose 'none' or '4bit'"),
        ({"frozen_layers": "0-12"}, "frozen_layers: '0-12' does not have the form"),
        ({"frozen_layers": "-4:"}, "frozen_layers: '-4:' does not have the form"),
    ],
)
def test_bad_settings_are_named(values: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError, match=f"settings: .*{says}"):
        load_settings(PolicySettings, None, values)


def test_settings_of_the_other_training_are_unknown() -> None:
    with pytest.raises(ConfigError, match="label_dropout: no such setting"):
        load_settings(AttributeSettings, None, {"label_dropout": 0.1})
    with pytest.raises(ConfigError, match="loss_weights: no such setting"):
        load_settings(PolicySettings, None, {"loss_weights": {}})


def test_all_bad_fields_are_told_at_once() -> None:
    with pytest.raises(ConfigError) as caught:
        checked(PolicySettings, {"epochs": -1, "contxt": 5, "schedule": "linear"}, where="here")
    assert str(caught.value).startswith("here: ")
    assert all(f"{name}: " in str(caught.value) for name in ("epochs", "contxt", "schedule"))


@pytest.mark.parametrize("text", ["[1, 2]", "- epochs", "just words", "1: 2", "true"])
def test_a_recipe_is_a_mapping(recipe: Any, text: str) -> None:
    with pytest.raises(ConfigError, match="expected a mapping of settings"):
        load_settings(PolicySettings, recipe(text), {})


@pytest.mark.parametrize(
    "text", ["epochs: [", "a: b: c", "[" * 3000, "\x00", "x: !!python/object:os.system {}", "epochs: 1\nepochs: 2"]
)
def test_a_recipe_that_is_no_yaml(recipe: Any, text: str) -> None:
    with pytest.raises(ConfigError, match="cannot read the recipe"):
        load_settings(PolicySettings, recipe(text), {})


def test_a_recipe_that_is_not_there() -> None:
    with pytest.raises(ConfigError, match=r"nowhere.yaml: no such recipe; give the path of a YAML file or one of: "):
        load_settings(PolicySettings, "nowhere.yaml", {})


def test_a_recipe_that_is_no_text(tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_bytes(b"base: \xff\xfe")
    with pytest.raises(ConfigError, match="cannot read the recipe"):
        load_settings(PolicySettings, tmp_path / "recipe.yaml", {})


@pytest.mark.parametrize(
    ("name", "kind"), [("llama2-13b-attribute-model", AttributeSettings), ("llama2-70b-policy", PolicySettings)]
)
def test_our_recipes_have_names(name: str, kind: type[TrainSettings]) -> None:
    assert load_settings(kind, name, {}) != kind()


def test_a_setting_without_effect_is_told_where_it_can_have_none() -> None:
    """Whether markers are added depends on the tokenizer, and label words are added for a policy alone."""
    alone = {"marker_tokens": False, "new_token_rate": 5}
    assert checked(PolicySettings, alone, where="here").new_token_rate == 5
    assert checked(AttributeSettings, {"new_token_rate": 5}, where="here").new_token_rate == 5
    with pytest.raises(ConfigError, match="none are added"):
        checked(AttributeSettings, alone, where="here")


@pytest.mark.parametrize("values", [{"lora_rank": 8, "lora_alpha": 16}, {"lora_rank": 8, "quantize": "4bit"}, {}])
def test_settings_of_adapters_that_go_together(values: dict[str, Any]) -> None:
    assert checked(AttributeSettings, {**values, "frozen_layers": ":6"}, where="here").frozen_layers == ":6"


def test_settings_are_frozen() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        TrainSettings().epochs = 3  # type: ignore[misc]


@pytest.mark.parametrize("kind", [AttributeSettings, PolicySettings])
def test_every_field_tells_what_it_means(kind: type[TrainSettings]) -> None:
    for name, field in kind.model_fields.items():
        assert field.description, name
        assert field.description.endswith("."), name


def test_the_schema_comes_from_its_file(tmp_path: Path) -> None:
    assert TrainSettings().schema_of_attributes == STEERLM
    (tmp_path / "schema.yaml").write_text("attributes: [{name: tone, low: 1, high: 7}]")
    assert TrainSettings(attribute_schema=tmp_path / "schema.yaml").schema_of_attributes.names == ("tone",)
    with pytest.raises(SchemaError, match="cannot read the schema"):
        _ = TrainSettings(attribute_schema=tmp_path / "none.yaml").schema_of_attributes
    assert PolicySettings(defaults={"verbosity": 1}).schema_of_attributes.defaults["verbosity"] == 1


def test_a_flag_is_judged_together_with_its_recipe(recipe: Any) -> None:
    """context=4096 contradicts the default pack size, not that of the recipe."""
    flags = PolicySettings(context=4096).model_dump(exclude_unset=True)
    assert load_settings(PolicySettings, recipe("pack_tokens: 8192\n"), flags).context == 4096
    with pytest.raises(ConfigError, match="cannot hold a path of context=4096"):
        PolicySettings(context=4096).require_consistent()
    with pytest.raises(ConfigError, match="packed with its foil"):
        PolicySettings(contrast=0.5, context=1024, pack_tokens=1500).require_consistent()


def test_none_unsets_what_is_optional(recipe: Any) -> None:
    """From flags, over a recipe; what has a `none` of its own keeps it."""
    path = recipe("best_by: loss\nlora_rank: 8\nquantize: 4bit\nsystem: Be kind.\nmax_steps: 3\n")
    flags = {"best_by": "none", "lora_rank": "none", "quantize": "none", "system": "none", "max_steps": "none"}
    found = load_settings(AttributeSettings, path, {**flags, "base": "none"})
    assert (found.best_by, found.lora_rank, found.system, found.max_steps) == (None, None, None, None)
    assert (found.quantize, found.base) == ("none", "none")
    with pytest.raises(ConfigError, match="context"):
        load_settings(AttributeSettings, path, {"context": "none"})
