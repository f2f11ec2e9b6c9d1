"""A process that ends while its engine is at work."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
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
engine.submit([Request((1, 2, 3, last), Sampling(max_tokens=100)) for last in range(8)], pieces.put)
assert not pieces.get().finish
print("left")
"""


_LONG_STEP = """
import atexit, os, signal, sys, threading, time

from steerlm.engines import Request, Sampling, TorchEngine
from steerlm.engines.torch import TorchCore
from steerlm.models.load import load_model

signal.signal(signal.SIGINT, signal.default_int_handler)  # which a process in the background lacks
begun = threading.Event()
TorchCore.step = lambda core: begun.set() or time.sleep(600) or []
engine = TorchEngine(load_model(sys.argv[1], "policy"))
engine.submit([Request((1, 2, 3), Sampling(max_tokens=100))], lambda piece: None)
begun.wait()
"""
_LEAVES_IT = """
atexit.register(lambda: print("leaving", file=sys.stderr, flush=True))  # called before what was registered earlier
print("left")
"""
_LEAVES_ITS_CHILD = """
if child := os.fork():
    os._exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
signal.alarm(60)
"""


@pytest.mark.parametrize("name", ["torch", "openvino"])
def test_the_interpreter_ends_amid_an_answer(directory: Path, name: str) -> None:
    command = [sys.executable, "-c", _LEAVES, str(directory), name]
    left = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert (left.returncode, left.stdout) == (0, "left\n"), left.stderr


def test_ctrl_c_ends_a_process_that_waits_for_its_engine(directory: Path) -> None:
    command = [sys.executable, "-c", _LONG_STEP + _LEAVES_IT, str(directory)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout
        assert process.stderr
        while process.stderr.readline() != "leaving\n":
            assert process.poll() is None
        while process.poll() is None:  # more than one, as the first may come before it waits
            process.send_signal(signal.SIGINT)
            time.sleep(0.2)
        assert process.stdout.read() == "left\n"
    assert process.returncode == 130


def test_a_child_does_not_wait_for_the_engine_of_its_parent(directory: Path) -> None:
    """Its thread is not there."""
    command = [sys.executable, "-c", _LONG_STEP + _LEAVES_ITS_CHILD, str(directory)]
    child = subprocess.run(command, timeout=120, check=False)
    assert child.returncode == 0
