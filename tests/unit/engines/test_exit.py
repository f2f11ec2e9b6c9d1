"""A process that ends while its engine is at work ends as if it were not."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

_LEAVES = """
import sys
from pathlib import Path
from queue import SimpleQueue

from steerlm.engines import Request, Sampling, make_engine
from steerlm.models.prompting import load_prompting

directory, name = Path(sys.argv[1]), sys.argv[2]
engine = make_engine(directory, load_prompting(directory), name, "cpu")
pieces = SimpleQueue()
engine.submit([Request((1, 2, 3, seed), Sampling(max_tokens=100)) for seed in range(8)], pieces.put)
assert not pieces.get().finish
print("left")
"""


@pytest.mark.parametrize("name", ["torch", "openvino"])
def test_the_interpreter_ends_amid_an_answer(directory: Path, name: str) -> None:
    left = subprocess.run([sys.executable, "-c", _LEAVES, str(directory), name], capture_output=True, text=True)
    assert (left.returncode, left.stdout) == (0, "left\n"), left.stderr
