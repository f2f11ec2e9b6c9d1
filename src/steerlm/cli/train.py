"""`steerlm train attributes|policy`: settings from a recipe, from flags, or both."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import App, Parameter
from rich.console import Console

from steerlm.models.load import SteerModel
from steerlm.training.config import AttributeSettings, PolicySettings, load_settings
from steerlm.training.run import train_attribute_model, train_policy

train_app = App(
    name="train",
    help="Train an attribute model (a judge of responses) or a policy (the model that is steered).",
)
_Fresh = Annotated[bool, Parameter(negative=())]


@train_app.command(name="attributes")
def train_attributes_command(
    recipe: str | None = None,
    *,
    settings: Annotated[AttributeSettings | None, Parameter(name="*")] = None,
    fresh: _Fresh = False,
) -> None:
    """Train the attribute model on rated conversations.

    A killed run goes on from its last checkpoint when the same command is given again.

    Parameters
    ----------
    recipe
        YAML file with settings, or the name of a recipe that comes with steerlm; flags go over it.
    fresh
        Throw away the checkpoints of an earlier, unfinished run.
    """
    merged = load_settings(AttributeSettings, recipe, _given(settings))
    _done(train_attribute_model(merged, fresh), merged.out, f"steerlm annotate DATA --model {merged.out} --out OUT")


@train_app.command(name="policy")
def train_policy_command(
    recipe: str | None = None,
    *,
    settings: Annotated[PolicySettings | None, Parameter(name="*")] = None,
    fresh: _Fresh = False,
) -> None:
    """Train the policy on annotated conversations (attribute-conditioned SFT).

    A killed run goes on from its last checkpoint when the same command is given again.

    Parameters
    ----------
    recipe
        YAML file with settings, or the name of a recipe that comes with steerlm; flags go over it.
    fresh
        Throw away the checkpoints of an earlier, unfinished run.
    """
    merged = load_settings(PolicySettings, recipe, _given(settings))
    _done(train_policy(merged, fresh), merged.out, f"steerlm chat {merged.out}")


def _given(settings: AttributeSettings | PolicySettings | None) -> dict[str, object]:
    """The flags that were really given, so that they alone go over the recipe."""
    return settings.model_dump(exclude_unset=True) if settings is not None else {}


def _done(model: SteerModel, out: Path, then: str) -> None:
    console = Console(stderr=True, soft_wrap=True)
    console.print(f"saved {model.info.kind} {model.info.fingerprint} to {out}; go on with: {then}", highlight=False)
