"""`steerlm train attributes|policy`: settings from a recipe, from flags, or both."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

from cyclopts import App, Parameter
from rich.console import Console
from rich.table import Table

from steerlm.cli.data_views import stdout, tree_view
from steerlm.models.load import SteerModel
from steerlm.parallel.ranks import launched
from steerlm.planning.hardware import GIB
from steerlm.training.config import AttributeSettings, PolicySettings, TrainSettings, load_settings
from steerlm.training.dry_run import dry_run as count
from steerlm.training.run import Resume, train_attribute_model, train_policy

train_app = App(
    name="train",
    help="Train an attribute model (a judge of responses) or a policy (the model that is steered).",
)
# Of four, even four that are won are no evidence.
_FEWEST_PAIRS = 5
_Flag = Annotated[bool, Parameter(negative=())]


@train_app.command(name="attributes")
def train_attributes_command(
    recipe: str | None = None,
    *,
    settings: Annotated[AttributeSettings | None, Parameter(name="*")] = None,
    resume: Resume = "auto",
    dry_run: _Flag = False,
) -> None:
    """Train the attribute model on rated conversations.

    A run that was killed, or stopped by SIGTERM or Ctrl-C, goes on from its last checkpoint when the same command is
    given again. Under torchrun the same command trains on all processes.

    Parameters
    ----------
    recipe
        YAML file with settings, or the name of a recipe that comes with steerlm; flags go over it.
    resume
        auto goes on from a checkpoint where there is one; must fails where there is none; never starts over, in place
        of a finished model of other settings too, which is refused otherwise.
    dry_run
        Train nothing: show packs, tokens, steps, memory and the first example.
    """
    merged = load_settings(AttributeSettings, recipe, _given(settings))
    if dry_run:
        _show_dry_run(merged, resume)
        return
    _done(train_attribute_model(merged, resume), merged, f"steerlm annotate DATA --model {merged.out} --out OUT")


@train_app.command(name="policy")
def train_policy_command(
    recipe: str | None = None,
    *,
    settings: Annotated[PolicySettings | None, Parameter(name="*")] = None,
    resume: Resume = "auto",
    dry_run: _Flag = False,
) -> None:
    """Train the policy on annotated conversations (attribute-conditioned SFT).

    A run that was killed, or stopped by SIGTERM or Ctrl-C, goes on from its last checkpoint when the same command is
    given again. Under torchrun the same command trains on all processes.

    Parameters
    ----------
    recipe
        YAML file with settings, or the name of a recipe that comes with steerlm; flags go over it.
    resume
        auto goes on from a checkpoint where there is one; must fails where there is none; never starts over, in place
        of a finished model of other settings too, which is refused otherwise.
    dry_run
        Train nothing: show packs, tokens, steps, memory and the first example.
    """
    merged = load_settings(PolicySettings, recipe, _given(settings))
    if dry_run:
        _show_dry_run(merged, resume)
        return
    model = train_policy(merged, resume)
    _done(model, merged, f"steerlm chat {merged.out}")
    if told := _deafness(model.info.metrics, merged.contrast):
        Console(stderr=True, soft_wrap=True).print(told, highlight=False, markup=False)


def _given(settings: TrainSettings | None) -> dict[str, object]:
    """The flags that were really given, so that they alone go over the recipe."""
    return settings.model_dump(exclude_unset=True) if settings is not None else {}


def _done(model: SteerModel, settings: TrainSettings, then: str) -> None:
    console = Console(stderr=True, soft_wrap=True)
    what = f"saved {model.info.kind} {model.info.fingerprint} to {settings.out}"
    console.print(f"{what}; go on with: {then}", highlight=False, markup=False)


def _deafness(metrics: Mapping[str, Any], contrast: float) -> str | None:
    """What to tell of a policy of which held-out responses do not show that it heeds its labels, by a sign test.

    `contrast` is the weight of the contrastive term that it was trained with.
    """
    if (pairs := metrics.get("gap_pairs", 0)) < _FEWEST_PAIRS:
        return None
    from scipy.stats import binomtest

    won = round(metrics["gap_won"] * pairs)
    if binomtest(won, pairs, alternative="greater").pvalue < 0.05:
        return None
    remedies = "longer or at a higher rate" if contrast else "longer, at a higher rate, or with --contrast 0.5"
    return (
        f"this policy does not seem to heed its labels: {won} of {pairs} held-out responses are likelier under their "
        f"own labels than under a sibling's. Train {remedies} (docs/results.md, What makes a small model listen)"
    )


def _show_dry_run(settings: TrainSettings, resume: Resume) -> None:
    rank, world = launched()
    if rank:
        return
    found = count(settings, resume, world)
    where = f"each of {world} processes" if world > 1 else "one process"
    policy, memory = isinstance(settings, PolicySettings), found.memory
    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    rows = {
        "conversations": f"{found.conversations} to train on, {found.held_out} held out",
        "one epoch": f"{found.report}",
        "with loss": f"{found.trained} {'tokens' if policy else 'responses'} an epoch",
        "packs": f"{found.packs} an epoch, {found.fill:.1%} full, the largest of {found.largest_pack} tokens",
        "steps": f"{found.steps}" if found.exact else f"about {found.steps}, as every epoch is cut into steps anew",
        "memory": f"{memory.peak / GIB:.1f} GiB in {where}, of them {memory.steady / GIB:.1f} for weights, "
        "gradients and AdamW, the rest for the largest pack",
    }
    for name, value in rows.items():
        table.add_row(name, value)
    console = stdout()
    console.print(table)
    console.print(tree_view(found.example, found.model.renderer, "policy" if policy else "score"))
