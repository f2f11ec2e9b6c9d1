"""What tests of the judge share."""

from __future__ import annotations

from pathlib import Path

import pytest

from small_bench import write_bench
from steerlm.evaluation.mt_bench.questions import Benchmark, load_benchmark
from steerlm.evaluation.mt_bench.settings import BenchSettings


@pytest.fixture
def bench(tmp_path: Path) -> Benchmark:
    return load_benchmark(BenchSettings(bench=str(write_bench(tmp_path / "data"))))
