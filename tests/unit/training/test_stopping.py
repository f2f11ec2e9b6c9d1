"""A signal is noted once; after that, and after the block, signals act as before."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading

import pytest

from steerlm.training.stopping import StopRequest

_IN_A_PROCESS_OF_ITS_OWN = """
import signal, sys
from steerlm.training.stopping import StopRequest

number = int(sys.argv[1])
signal.signal(signal.SIGINT, signal.default_int_handler)  # one that a shell starts in the background ignores Ctrl-C
before = {each: signal.getsignal(each) for each in (signal.SIGTERM, signal.SIGINT)}
with StopRequest() as stop:
    assert stop.signal == 0
    signal.raise_signal(number)
    signal.raise_signal(signal.SIGTERM)
    assert stop.signal == number
    try:
        signal.raise_signal(signal.SIGINT)
    except KeyboardInterrupt:
        pass
    else:
        raise AssertionError("the second Ctrl-C does nothing")
    assert {each: signal.getsignal(each) for each in before} == before
assert {each: signal.getsignal(each) for each in before} == before
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_the_first_signal_is_noted_and_only_a_second_ctrl_c_acts(number: signal.Signals) -> None:
    """Schedulers send SIGTERM to a whole process group, and torchrun passes it on once more."""
    done = subprocess.run(
        [sys.executable, "-c", _IN_A_PROCESS_OF_ITS_OWN, str(int(number))], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


def test_without_a_signal_all_is_as_before() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with StopRequest() as stop:
        assert signal.getsignal(signal.SIGTERM) != before
    assert stop.signal == 0
    assert signal.getsignal(signal.SIGTERM) == before


def test_a_thread_other_than_the_main_one_may_train_too() -> None:
    """Python lets only the main thread handle signals."""
    noted = []

    def work() -> None:
        with StopRequest() as stop:
            noted.append(stop.signal)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert noted == [0]
