"""A signal is noted once; after that, and after the block, signals act as before."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator

import pytest

from steerlm.training.stopping import StopRequest


@pytest.fixture(autouse=True)
def _ctrl_c_as_in_a_terminal() -> Iterator[None]:
    """A process that a shell starts in the background ignores Ctrl-C."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_the_first_signal_is_noted_and_only_a_second_ctrl_c_acts(number: signal.Signals) -> None:
    """Schedulers send SIGTERM to a whole process group, and torchrun passes it on once more."""
    before = {each: signal.getsignal(each) for each in (signal.SIGTERM, signal.SIGINT)}
    with StopRequest() as stop:
        assert stop.signal == 0
        signal.raise_signal(number)
        signal.raise_signal(signal.SIGTERM)
        assert stop.signal == number
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
        assert {each: signal.getsignal(each) for each in before} == before
    assert {each: signal.getsignal(each) for each in before} == before


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
