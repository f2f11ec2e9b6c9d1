"""What a run of a contender gives, its comparison with ours, and the table of both."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import median
from typing import Any

from rich.console import Console
from rich.table import Table


@dataclass(frozen=True)
class Run:
    """One epoch of one contender.

    seconds             all of it: reading the data, loading and (ours) saving the model, training
    epoch_seconds       from the first forward pass to the end of the last optimiser step
    first_step_seconds  those of the first step, in which kernels are compiled
    steps, passes       optimiser steps, and forward passes
    tokens              tokens of the data that went through the network, each repetition counted
    computed_tokens     the same with padding
    loss                mean over the steps
    peak_mb             largest resident memory of the process, in megabytes (2^20 bytes)
    resident_before_mb  what it held before it began
    """

    seconds: float
    epoch_seconds: float
    first_step_seconds: float
    steps: int
    passes: int
    tokens: int
    computed_tokens: int
    loss: float
    peak_mb: int
    resident_before_mb: int


def compared(
    runs: Mapping[str, Sequence[Run]], figures: Mapping[str, Any], rates: Sequence[Mapping[str, Any]]
) -> dict[str, Any]:
    """Every contender's runs with their medians, the share of the tokens computed that is not padding (`fill`), and how
    many times as long and as much memory as ours it took.
    """
    record: dict[str, dict[str, Any]] = {}
    for name, items in runs.items():
        seconds = median(item.epoch_seconds for item in items)
        record[name] = {
            "runs": [asdict(item) for item in items],
            "epoch_seconds": seconds,
            "seconds": median(item.seconds for item in items),
            "tokens_per_second": items[0].tokens / seconds,
            "thread_tokens_per_second": figures["threads"]["tokens"] / seconds,
            "fill": items[0].tokens / items[0].computed_tokens,
            "peak_mb": max(item.peak_mb for item in items),
        }
    if ours := record.get("steerlm"):
        for item in record.values():
            item["times_our_seconds"] = item["epoch_seconds"] / ours["epoch_seconds"]
            item["our_share_of_its_memory"] = ours["peak_mb"] / item["peak_mb"]
        rate = max(rate["best"] for rate in rates)
        done = figures["flops"]["total"] / ours["epoch_seconds"]
        ours |= {"flops_per_second": done, "product_rate": rate, "share_of_product_rate": done / rate}
    return record


def table(works: Mapping[str, Mapping[str, Any]]) -> None:
    """Print one line for each contender of each work item."""
    console = Console(width=140)
    lines = Table("work", "contender", title="One epoch of the same responses")
    for heading in ("seconds", "ratio", "tokens", "fill", "tokens/s", "peak MB", "our share", "of product rate"):
        lines.add_column(heading, justify="right")
    for work, record in works.items():
        for name, item in record["contenders"].items():
            run = item["runs"][0]
            lines.add_row(
                work,
                name,
                f"{item['epoch_seconds']:.1f}",
                f"{item['times_our_seconds']:.2f}" if "times_our_seconds" in item else "",
                f"{run['tokens']:,}",
                f"{item['fill']:.1%}",
                f"{item['tokens_per_second']:.0f}",
                f"{item['peak_mb']:,}",
                f"{item['our_share_of_its_memory']:.2f}" if "our_share_of_its_memory" in item else "",
                f"{item['share_of_product_rate']:.0%}" if "share_of_product_rate" in item else "",
            )
        lines.add_section()
    console.print(lines)
    for work, record in works.items():
        if check := record.get("equal_work"):
            sums = ", ".join(f"{name} {total:.3f}" for name, total in check["summed_loss"].items())
            console.print(f"{work}: summed losses before any update: {sums}", highlight=False)
        if profile := record.get("profile"):
            shares = ", ".join(f"{part} {share:.0%}" for part, share in profile["shares"].items())
            console.print(f"{work}: our time goes to {shares}", highlight=False)
