"""Write `invariants/trajectory.json` anew, where a change of the method is meant to change what training does.

PYTHONPATH=src python tests/make_trajectory.py
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import torch

from steerlm.files import write_json
from tiny_runs import TRAIN, logged, prepare, train

TRAJECTORY = Path(__file__).parent / "invariants" / "trajectory.json"


def trajectories(folder: Path) -> dict[str, list[dict[str, Any]]]:
    """Loss and gradient norm of each step of a tiny run of each task."""
    found = {}
    for task in TRAIN:
        train(folder, task, f"trajectory-{task}")
        steps = [line for line in logged(folder / f"trajectory-{task}") if line["kind"] == "train"]
        found[task] = [{key: line[key] for key in ("loss", "gradient_norm")} for line in steps]
    return found


if __name__ == "__main__":
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        write_json(TRAJECTORY, trajectories(prepare(Path(name))))
