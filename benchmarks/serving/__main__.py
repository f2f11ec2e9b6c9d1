"""`python -m benchmarks.serving`: measure, print what was seen, write the result."""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from benchmarks.command import run_benchmark
from benchmarks.measure import set_threads, surroundings
from benchmarks.serving.options import Options
from benchmarks.serving.works import Bench
from steerlm.files import write_json


def main(*, options: Annotated[Options | None, Parameter(name="*")] = None) -> None:
    """Measure generation and serving of one policy against others on this machine.

    Greedy, the same prompts and exactly the same number of tokens for everyone; each in processes of its own, in
    turns. A result file keeps the work that is not measured anew.
    """
    options = options or Options()
    set_threads(options.threads)
    record = json.loads(options.out.read_text(encoding="utf-8")) if options.out.is_file() else {"works": {}}
    for work in options.work:
        with tempfile.TemporaryDirectory(prefix="steerlm-benchmark-") as folder:
            bench = Bench(options, Path(folder), say)
            measured = bench.measure(work)
        record["works"][work] = {
            "measured": measured,
            "options": bench.options.model_dump(
                mode="json", exclude={"out", "work", "model", "vllm_python", "llama_cpp_python"}
            ),
            **surroundings("openvino-genai", "fastapi", "uvicorn", "gguf"),
        }
        write_json(options.out, record)
    say(f"written to {options.out}")


def say(text: str) -> None:
    """Tell how far it is."""
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    run_benchmark("serving", main)
