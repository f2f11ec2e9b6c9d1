"""A process that ends while its engine is at work."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

pytestmark = pytest.mark.parametrize("directory", ["llama"], indirect=True)

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
from steerlm.errors import EngineError
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
_TERMINATED = """
signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
atexit.register(lambda: signal.setitimer(signal.ITIMER_REAL, 0.5))
signal.signal(signal.SIGALRM, lambda *_: os.kill(os.getpid(), signal.SIGTERM))
print("left")
"""
_FAILS_AT_ITS_END = """
def handler(*_):
    raise TimeoutError("too long")
signal.signal(signal.SIGALRM, handler)
atexit.register(lambda: signal.setitimer(signal.ITIMER_REAL, 0.5))
print("left")
"""
_LEAVES_ITS_CHILD = """
if child := os.fork():
    os._exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
signal.alarm(60)
"""
_CLOSES_IN_ITS_CHILD = """
engine.close()
try:
    engine.submit([Request((1, 2, 3), Sampling())], print)
except EngineError as error:
    sys.exit("closed" not in str(error))
sys.exit(1)
"""
_CANCELS_IN_ITS_CHILD = """
import os, signal, sys, threading

from steerlm.engines import Request, Sampling, TorchEngine
from steerlm.models.load import load_model

engine = TorchEngine(load_model(sys.argv[1], "policy"))
telling = threading.Event()
cancel = engine.submit([Request((1, 2, 3), Sampling(max_tokens=9))], lambda piece: telling.set() or signal.pause())
telling.wait()
if child := os.fork():
    os._exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
signal.alarm(60)
cancel()
"""
_CORES_FAIL_AT_CLOSING = """
import sys

from steerlm.engines import Request, Sampling, TorchEngine, complete
from steerlm.engines.torch import TorchCore
from steerlm.models.load import load_model

class Panic(BaseException): pass

def close(core):
    print("closed", flush=True)
    raise Panic("out of paper")

TorchCore.close = close
model = load_model(sys.argv[1], "policy")
engines = [TorchEngine(model) for _ in range(3)]
for engine in engines:
    complete(engine, [Request((1, 2, 3), Sampling(max_tokens=1))])
"""
_FORKS_IDLE = """
import os, signal, sys, time

from steerlm.engines import Request, Sampling, TorchEngine
from steerlm.engines.torch import TorchCore
from steerlm.models.load import load_model

engine = TorchEngine(load_model(sys.argv[1], "policy"))
if child := os.fork():
    os._exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
signal.alarm(60)
TorchCore.step, TorchCore.close = lambda core: time.sleep(0.1) or [], lambda core: print("closed")
engine.submit([Request((1, 2, 3), Sampling(max_tokens=100))], lambda piece: None)
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


def test_a_signal_handler_that_exits_ends_a_process_that_waits_for_its_engine(directory: Path) -> None:
    command = [sys.executable, "-c", _LONG_STEP + _TERMINATED, str(directory)]
    left = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert (left.returncode, left.stdout) == (143, "left\n"), left.stderr


def test_a_signal_handler_that_fails_ends_a_process_that_waits_for_its_engine(directory: Path) -> None:
    command = [sys.executable, "-c", _LONG_STEP + _FAILS_AT_ITS_END, str(directory)]
    left = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert (left.returncode, left.stdout) == (1, "left\n"), left.stderr
    assert "TimeoutError: too long" in left.stderr


def test_an_engine_that_cannot_be_closed_does_not_keep_others_open(directory: Path) -> None:
    command = [sys.executable, "-c", _CORES_FAIL_AT_CLOSING, str(directory)]
    left = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert left.stdout == "closed\n" * 3, left.stderr
    assert left.stderr.count("an engine could not be closed") == 3


@pytest.mark.parametrize("does", ["", _CLOSES_IN_ITS_CHILD])
def test_a_child_does_not_wait_for_the_engine_of_its_parent(directory: Path, does: str) -> None:
    """Its thread is not there."""
    command = [sys.executable, "-c", _LONG_STEP + _LEAVES_ITS_CHILD + does, str(directory)]
    child = subprocess.run(command, timeout=120, check=False)
    assert child.returncode == 0


def test_a_child_cancels_what_its_parent_is_being_told(directory: Path) -> None:
    child = subprocess.run([sys.executable, "-c", _CANCELS_IN_ITS_CHILD, str(directory)], timeout=120, check=False)
    assert child.returncode == 0


def test_a_child_closes_the_engine_that_it_used_first(directory: Path) -> None:
    child = subprocess.run([sys.executable, "-c", _FORKS_IDLE, str(directory)], capture_output=True, timeout=120)
    assert (child.returncode, child.stdout) == (0, b"closed\n"), child.stderr
