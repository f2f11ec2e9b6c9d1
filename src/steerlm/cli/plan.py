"""`steerlm plan`: whether a training fits on GPUs, what to change if not, how long it takes."""

from __future__ import annotations

import json
from typing import Annotated, Any, Literal

from cyclopts import Parameter
from cyclopts.types import PositiveFloat, PositiveInt
from rich.table import Table

from steerlm.cli.data_views import stdout
from steerlm.errors import ConfigError
from steerlm.planning.changes import Change
from steerlm.planning.hardware import GIB, GPUS, Gpu, Hardware
from steerlm.planning.plan import Plan, make_plan
from steerlm.training.config import AttributeSettings, PolicySettings, kind_of, load_settings, read_recipe


class _Flags(PolicySettings, AttributeSettings):
    """The flags of both trainings."""


def plan_command(
    recipe: str | None = None,
    *,
    gpus: PositiveInt = 1,
    gpu: Gpu = "a100",
    gpu_memory: PositiveFloat | None = None,
    tflops: PositiveFloat | None = None,
    utilisation: PositiveFloat = 0.4,
    reserve: PositiveFloat = 4.0,
    tokens_per_conversation: PositiveFloat | None = None,
    kind: Literal["policy", "attributes"] | None = None,
    json_: Annotated[bool, Parameter(name="--json", negative=())] = False,
    settings: Annotated[_Flags | None, Parameter(name="*")] = None,
) -> None:
    """Tell whether a training fits on GPUs, what to change if not, and how long it takes.

    steerlm plan llama2-70b-policy --gpus 32 --gpu h100

    Nothing is trained and no weights are read: the training step runs on tensors without contents while their bytes
    are counted. All settings of `steerlm train` may be given over the recipe. Llama-2 models need no download.

    Parameters
    ----------
    recipe
        YAML file with settings, or the name of a recipe that comes with steerlm; flags go over it.
    gpus
        GPUs of all nodes together, one process each.
    gpu
        Kind of GPU, for its memory and rate: 80 GB cards of a100 and h100, the 141 GB card of h200.
    gpu_memory
        GiB of each GPU, where they are others.
    tflops
        Dense operations a second of each GPU in the training's precision, in 10^12, where they are others: in bf16 a100
        312, h100 and h200 989; in fp32 a100 19.5, h100 and h200 67.
    utilisation
        Part of that rate that training reaches; 0.3 to 0.5 is usual, more with few GPUs and large matrices.
    reserve
        GiB of each GPU that CUDA, NCCL and gaps in the allocator's memory take.
    tokens_per_conversation
        Tokens of a conversation tree on average. Without it they are measured where the recipe's data are there, and
        else taken to be those of Open Assistant: 1,755 for a policy, 1,428 for an attribute model.
    kind
        Which training the recipe is for, where its settings do not tell.
    json_
        Print the plan as JSON.
    settings
        Settings of the training, each with a flag of its own.
    """
    given = settings.model_dump(exclude_unset=True) if settings is not None else {}
    merged = load_settings(_kind(kind, recipe, given), recipe, given)
    spec = GPUS[gpu]
    hardware = Hardware(gpus, gpu_memory or spec.memory, tflops or spec.tflops(merged.precision), utilisation, reserve)
    plan = make_plan(merged, hardware, tokens_per_conversation)
    if json_:
        print(json.dumps(plan.to_dict(), indent=2))
        return
    console = stdout()
    cards = f"{gpus} GPUs" if gpus > 1 else "one GPU"
    what = f"{kind_of(merged)} on {merged.base}, {cards} of {hardware.memory:g} GiB"
    for heading, table in ((what, _parameters(plan)), ("memory of each GPU", _memory(plan)), ("speed", _speed(plan))):
        console.print(heading, soft_wrap=True)
        console.print(table)
    for line in _verdict(plan):
        console.print(line, soft_wrap=True)


def _kind(name: str | None, recipe: str | None, given: dict[str, Any]) -> type[PolicySettings | AttributeSettings]:
    kinds: dict[str, type[PolicySettings | AttributeSettings]] = {
        "policy": PolicySettings,
        "attributes": AttributeSettings,
    }
    if name is not None:
        return kinds[name]
    names = {*given, *(read_recipe(recipe) if recipe else ())}
    policy, attributes = (set(kind.model_fields) for kind in kinds.values())
    fitting = [kind for kind in kinds.values() if names <= set(kind.model_fields)]
    if names & (policy ^ attributes) and len(fitting) == 1:
        return fitting[0]
    raise ConfigError(f"{recipe or 'settings'}: say which training this is for, with --kind policy or attributes")


def _parameters(plan: Plan) -> Table:
    found = plan.parameters
    table = _table()
    table.add_row("parameters", f"{found.total:,}", f"{found.trainable:,} of them trained")
    table.add_row("embeddings", f"{found.embeddings:,}", f"head {found.head:,}")
    return table


def _memory(plan: Plan) -> Table:
    settings, found = plan.settings, plan.footprint
    data_ranks = plan.hardware.gpus // settings.tensor_parallel
    spread = f"1/{data_ranks} of them" if data_ranks > 1 else "all of them"
    if settings.tensor_parallel > 1:
        spread += f", and 1/{settings.tensor_parallel} of that in blocks"
    now, other = ("recomputed", "kept") if settings.gradient_checkpointing else ("kept", "recomputed")
    work, doing = max(
        (found.forward, "one block computed"),
        (found.loss, "the loss"),
        (found.backward, "gradients of one block"),
        (found.end, "gradients of embeddings and head"),
    )
    table = _table()
    for name, size, note in (
        ("weights", found.weights, spread),
        ("AdamW's moments", found.moments, "float32"),
        ("gradients", found.gradients, "float32"),
        ("gathered weights", found.gathered, "embeddings, head"),
        ("activations", found.kept - found.gathered, f"{settings.pack_tokens} tokens, {now} in each block"),
        ("work", work - found.kept, f"at the peak: {doing}"),
    ):
        table.add_row(name, f"{size / GIB:.1f} GiB", note)
    if isinstance(settings, PolicySettings):
        when = "which is the work" if work == found.loss else "not at the peak"
        note = f"{settings.loss_chunk} tokens at a time, {when}"
        table.add_row("logits", f"{found.logits / GIB:.1f} GiB", note)
    table.add_row("reserve", f"{plan.hardware.reserve:.1f} GiB", "CUDA, NCCL, gaps")
    otherwise = plan.otherwise.peak / GIB + plan.hardware.reserve
    table.add_row("total", f"{plan.total:.1f} GiB", f"with activations {other}: {otherwise:.1f} GiB")
    return table


def _speed(plan: Plan) -> Table:
    found, hardware = plan.speed, plan.hardware
    data_ranks = hardware.gpus // plan.settings.tensor_parallel
    table = _table()
    terms = [f"{formula} = {operations / 1e9:.3g}" for formula, operations in found.work.items()]
    table.add_row("a token", f"{found.flops / 1e9:,.3g} GFLOP", "\n".join(terms))
    table.add_row("a conversation", f"{plan.workload.tokens:,.0f} tokens", plan.workload.source)
    packs = f"{found.passes} packs" + (f" on each of {data_ranks} ranks" if data_ranks > 1 else "")
    table.add_row("a step", f"{found.step_tokens:,} tokens", packs)
    at = f"{hardware.utilisation:.0%} of {hardware.tflops:g} TFLOP/s, {found.busy:.0%} of the time"
    table.add_row("all GPUs", f"{found.tokens_per_second:,.0f} tokens/s", at)
    if found.hours is not None:
        table.add_row("training", f"{shown_hours(found.hours)} hours", f"{found.steps:,} steps")
    return table


def shown_hours(hours: float) -> str:
    """With a digit that says something of a short training too."""
    return f"{hours:,.1f}" if hours >= 0.1 else f"{hours:.2f}"


def _verdict(plan: Plan) -> list[str]:
    """Whether it fits, and if not, what to do."""
    room = f"{plan.total:.1f} of {plan.hardware.memory:g} GiB"
    if plan.fits:
        return [f"It fits: {room}."]
    if not plan.changes:
        return [f"It does not fit: {room}. Nothing that was tried makes it fit: take a smaller base model."]
    first, *others = (_advice(change, plan) for change in plan.changes)
    return [f"It does not fit: {room}. It does with {first}.", *(f"Or with {other}." for other in others)]


def _advice(change: Change, plan: Plan) -> str:
    flags = [f"--gpus {change.gpus}"] if change.gpus != plan.hardware.gpus else []
    for name, value in change.settings.items():
        flags.append(f"--{name.replace('_', '-')}" + ("" if value is True else f" {value}"))
    return f"{' '.join(flags)} ({change.total:.1f} GiB)"


def _table() -> Table:
    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column(min_width=17)
    table.add_column(justify="right", min_width=18)
    table.add_column()
    return table
