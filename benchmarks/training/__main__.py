"""`python -m benchmarks.training`: measure, print a table, write the result."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter

from benchmarks.command import run_benchmark
from benchmarks.measure import set_threads
from benchmarks.training import peers
from benchmarks.training.compare import measure, say
from benchmarks.training.options import Options
from benchmarks.training.results import table
from steerlm.files import write_json


def main(*, options: Annotated[Options | None, Parameter(name="*")] = None) -> None:
    """Train one epoch with each contender on the same responses, and compare time and memory.

    Every contender runs in a process of its own, in turns; the same weights, tokens, optimiser and learning rate, no
    validation, no checkpoints. A result file keeps the work that is not measured anew.
    """
    options = options or Options()
    peers.require(options.contenders)
    set_threads(options.threads)
    record = json.loads(options.out.read_text(encoding="utf-8")) if options.out.is_file() else {"works": {}}
    measured: dict[str, Any] = {}
    for work in options.work:
        with tempfile.TemporaryDirectory(prefix="steerlm-benchmark-") as folder:
            measured[work] = measure(options, work, Path(folder))
        record["works"][work] = measured[work]
        write_json(options.out, record)
    table(measured)
    say(f"written to {options.out}")


if __name__ == "__main__":
    run_benchmark("training", main)
