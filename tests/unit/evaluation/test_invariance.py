"""Whether scores depend on what else is computed: checks that hold, and a fault that they find."""

from __future__ import annotations

import io
import math
import re
from typing import Any

import numpy as np
import pytest
import torch
from rich.console import Console

from steerlm.annotation import ScoreSettings
from steerlm.conversation import Conversation, Message
from steerlm.evaluation.attribute_tables import evaluation_view
from steerlm.evaluation.invariance import Invariance, check_invariance
from steerlm.models.load import SteerModel
from steerlm.training.task import Batch
from tiny_judge import random_trees

EXACT = ScoreSettings(context=256, precision="fp32")


def test_invariance_is_checked_on_what_fits(judge: SteerModel) -> None:
    long = Conversation("long", (Message("user", "Hi"), Message("assistant", "salty " * 300, 0)))
    checks = check_invariance(judge, [long, *random_trees(10)], EXACT, 1)
    assert all(check.holds and check.responses for check in checks), checks
    assert check_invariance(judge, [long], EXACT, 4) == []
    # Without their oldest turns the last answers fit, which transformers' batches do not leave out.
    texts = [("user", "assistant")[k % 2] for k in range(12)]
    turns = Conversation(
        "turns", tuple(Message(role, "salty " * 20, k - 1 if k else None) for k, role in enumerate(texts))
    )
    whole = check_invariance(judge, [turns], EXACT, 20)
    assert all(check.holds and 0 < check.responses < 6 for check in whole), whole


def test_invariance_is_no_matter_of_rounding(judge: SteerModel) -> None:
    """In bfloat16 scores may differ by more than a fault would make them; that is told apart."""
    exact = check_invariance(judge, random_trees(30), EXACT, 20)
    rough = check_invariance(judge, random_trees(30), ScoreSettings(context=256, precision="bf16"), 20)
    assert rough[:-1] == exact
    assert rough[-1].name == "rounding (bfloat16)"
    assert rough[-1].difference > max(check.difference for check in exact)


def test_invariance_holds(judge: SteerModel) -> None:
    checks = check_invariance(judge, random_trees(30), EXACT, 20)
    assert len(checks) == 5
    assert all(check.holds and check.responses > 10 for check in checks), checks


def test_a_judge_that_looks_at_its_neighbours_is_found(judge: SteerModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """Positions that count through the whole pack are a fault that no figure of agreement shows."""
    whole = Batch.inputs

    def counted(self: Batch) -> dict[str, Any]:
        inputs = whole(self)
        return {**inputs, "position_ids": self.tensor(np.arange(self.pack.size))[None]}

    monkeypatch.setattr(Batch, "inputs", counted)
    checks = {check.name: check for check in check_invariance(judge, random_trees(30), EXACT, 20)}
    assert not checks["packing (whole trees)"].holds
    assert not checks["padding (transformers' own batches)"].holds


def test_a_score_that_is_no_number_is_a_fault(judge: SteerModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows of nothing but padding in a mask give NaN: here to all responses that stand beside a longer one."""
    whole = type(judge.network).forward

    def padded(self: Any, *args: Any, attention_mask: Any = None, **rest: Any) -> Any:
        found = whole(self, *args, attention_mask=attention_mask, **rest)
        if isinstance(attention_mask, torch.Tensor) and attention_mask.dim() == 2:
            found.logits[~attention_mask.bool().all(dim=1)] = torch.nan
        return found

    monkeypatch.setattr(type(judge.network), "forward", padded)
    checks = check_invariance(judge, random_trees(30), EXACT, 20)
    assert {check.name: check.difference for check in checks if not check.holds} == {
        "padding (transformers' own batches)": math.inf
    }
    assert len({check.responses for check in checks}) == 1
    shown = Console(record=True, width=120, file=io.StringIO())
    shown.print(evaluation_view({"invariance": [check.record() for check in checks]}))
    assert re.search(r"no score *│ *NOT within 0.001", shown.export_text())


def test_a_single_conversation_has_no_other_order(judge: SteerModel) -> None:
    one = next(tree for tree in random_trees(30) if tree.responses)
    names = [check.name for check in check_invariance(judge, [one], EXACT, 20)]
    assert len(names) == 4
    assert "position in the pack (reversed order)" not in names


def test_the_table_says_within_what() -> None:
    checks = [
        Invariance("packing", 2e-6, 0.001, 9),
        Invariance("order", 0.002, 0.001, 9),
        Invariance("rounding (bfloat16)", 0.24, 0.25, 9),
    ]
    shown = Console(record=True, width=120, file=io.StringIO())
    shown.print(evaluation_view({"invariance": [check.record() for check in checks]}))
    rows = [re.split(r" *│ *", line)[1:-1] for line in shown.export_text().splitlines() if "│" in line]
    assert rows == [
        ["packing", "9", "2e-06", "within 0.001"],
        ["order", "9", "0.002", "NOT within 0.001"],
        ["rounding (bfloat16)", "9", "0.24", "within 0.25"],
    ]
