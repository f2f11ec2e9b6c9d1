"""Who a process is, and what processes tell each other."""

from __future__ import annotations

import pytest
import torch
from torch import distributed

from processes import launch
from sharded import talk_in_process
from steerlm.errors import ConfigError, DataError, StoppedError, TrainingError
from steerlm.parallel.ranks import Ranks, is_first_to_tell

TORCHRUN = ("RANK", "LOCAL_RANK", "WORLD_SIZE")


@pytest.fixture(autouse=True)
def no_torchrun(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in TORCHRUN:
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize("environment", [{}, {"WORLD_SIZE": "1", "RANK": "0", "LOCAL_RANK": "0"}])
def test_a_single_process_talks_to_nobody(environment: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    ranks = Ranks.start("cpu")
    assert not torch.distributed.is_initialized()
    assert ranks.is_main
    assert (ranks.data_rank, ranks.data_world, ranks.tensor_rank, ranks.tensor_world) == (0, 1, 0, 1)
    tensor = torch.tensor([1.0, 2.0])
    assert ranks.sum(tensor) is tensor
    assert ranks.gather("a") == ["a"]
    assert ranks.any(True)
    assert not ranks.any(False)
    assert ranks.on_main(lambda: 3) == 3
    assert ranks.gather_from_all("a") == ["a"]
    ranks.close()


@pytest.mark.parametrize(
    ("environment", "device", "tensor_parallel", "message"),
    [
        ({}, "cpu", 2, "tensor_parallel=2 does not divide the 1 processes"),
        ({"WORLD_SIZE": "6", "RANK": "0", "LOCAL_RANK": "0"}, "cpu", 4, "tensor_parallel=4 does not divide the 6"),
        ({"WORLD_SIZE": "2"}, "cpu", 1, "WORLD_SIZE is set but RANK is not; start several processes with torchrun"),
        ({"WORLD_SIZE": "2", "RANK": "0"}, "cpu", 1, "WORLD_SIZE is set but LOCAL_RANK is not"),
        ({"WORLD_SIZE": "two"}, "cpu", 1, "WORLD_SIZE='two' is no number"),
        ({"WORLD_SIZE": "2", "RANK": "0", "LOCAL_RANK": "0"}, "meta", 1, "'meta' is not for several processes"),
        ({}, "tpu9", 1, "device 'tpu9' cannot be used here"),
    ],
)
def test_what_cannot_start(
    environment: dict[str, str], device: str, tensor_parallel: int, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError, match=message):
        Ranks.start(device, tensor_parallel)


def test_more_processes_than_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"WORLD_SIZE": "2", "RANK": "1", "LOCAL_RANK": "1"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(ConfigError, match="process 1 of this node has no GPU of its own: there are 1"):
        Ranks.start("auto")


def test_an_error_of_many_processes_is_told_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """What all meet by the first, what one alone meets by that one; where nobody keeps count, by each."""
    assert is_first_to_tell(DataError("bad"))
    store = distributed.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(store.port)}
    for name, value in {"WORLD_SIZE": "3", "RANK": "1", **place}.items():
        monkeypatch.setenv(name, value)
    told = [is_first_to_tell(DataError(text)) for text in ("bad", "bad", "no such file here", "bad")]
    assert told == [True, False, True, False]
    assert not is_first_to_tell(TrainingError("not finite"))
    assert not is_first_to_tell(StoppedError("stopped", 15))
    monkeypatch.setenv("RANK", "0")
    assert is_first_to_tell(TrainingError("not finite"))
    monkeypatch.delenv("MASTER_PORT")
    assert is_first_to_tell(DataError("bad"))


def test_four_processes_in_two_groups_of_two() -> None:
    """Neighbours share packs; what is summed or gathered goes over the data ranks, what is asked over all."""
    found = launch(4, talk_in_process)
    assert [process["place"] for process in found] == [(0, 0), (0, 1), (1, 0), (1, 1)]
    assert [process["main"] for process in found] == [True, False, False, False]
    # Ranks 0 and 2 are the data ranks of the first tensor rank, 1 and 3 those of the second.
    assert [process["sum"] for process in found] == [[2.0, 20.0], [4.0, 20.0], [2.0, 20.0], [4.0, 20.0]]
    assert all(process["everywhere"] == ["0", "1", "2", "3"] for process in found)
    assert all(process["own"] == [float(rank), 10.0] for rank, process in enumerate(found))
    assert [process["gathered"] for process in found] == [["0", "2"], ["1", "3"], ["0", "2"], ["1", "3"]]
    assert [process["any"] for process in found] == [[True, False]] * 4
    assert [process["told"] for process in found] == ["by rank 0"] * 4
    assert [process["failure"] for process in found] == [
        "OSError: no room",
        *["TrainingError: the main process failed: OSError: no room"] * 3,
    ]
    assert {process["refusal"] for process in found} == {"DataError: bad data"}
