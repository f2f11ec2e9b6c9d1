"""Steering as a walk in the space of attributes (arXiv 2505.23816), and its evenness (arXiv 2406.04460).

Goals are drawn uniformly over the grid of settings. Every scale is brought to 0..1. For one answer, z* is what was
asked, z what was measured, and z0 what is measured at the defaults.

Shapes: G goals, A attributes, P prompts, E ends of a scale, W ways to put a prompt.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import t as student

from steerlm.attributes import Attribute, Schema
from steerlm.evaluation.answers import PERPLEXITY, Measured, own_column, score_columns
from steerlm.evaluation.asks import Values
from steerlm.evaluation.bootstrap import MIN_UNITS, Estimate, bootstrap_figures

Floats = NDArray[np.float64]
_REACHED = 0.05


def steering_errors(asked_GA: Floats, measured_GA: Floats, start_GA: Floats) -> dict[str, Floats]:
    """Per goal: the steering error |z* - z|; its part along the request z* - z0, relative to the length of the request
    (miscalibration, 0 is right, 1 is as far off as was asked to go); its part across the request relative to the way
    gone from z0 (orthogonality, 0 where nothing else moves, at most 1). NaN where no way was asked for or gone.
    """
    error_GA, request_GA = asked_GA - measured_GA, asked_GA - start_GA
    moved_G = np.linalg.norm(measured_GA - start_GA, axis=1)
    length_G = np.linalg.norm(request_GA, axis=1)
    with np.errstate(invalid="ignore", divide="ignore"):
        unit_GA = request_GA / length_G[:, None]
        along_G = (error_GA * unit_GA).sum(axis=1)
        across_G = np.linalg.norm(error_GA - along_G[:, None] * unit_GA, axis=1)
        miscalibration_G = np.abs(along_G) / length_G
        orthogonality_G = np.minimum(across_G / moved_G, 1.0)
    miscalibration_G[length_G < 1e-9] = np.nan
    orthogonality_G[(length_G < 1e-9) | (moved_G < 1e-9)] = np.nan
    return {
        "error": np.linalg.norm(error_GA, axis=1),
        "miscalibration": miscalibration_G,
        "orthogonality": orthogonality_G,
    }


def goal_figures(
    measured: Measured, schema: Schema, attributes: Sequence[str], resamples: int, seed: int
) -> dict[str, Any] | None:
    """Figures of the answers that set all attributes at once; None where there are none, or no attribute model scores
    all of them.
    """
    items = [schema[name] for name in attributes]
    names = score_columns(attributes, measured.columns)
    columns = [measured.columns[column] for column in names.values()]
    starts = _starts(measured, items)
    rows = [number for number in _goal_rows(measured, attributes) if measured.asks[number].prompt in starts]
    if not rows or len(columns) < len(items):
        return None
    measured_GA = np.stack([_unit(item, column[rows]) for item, column in zip(items, columns, strict=True)], axis=1)
    start_rows = [starts[measured.asks[number].prompt] for number in rows]
    start_GA = np.stack([_unit(item, column[start_rows]) for item, column in zip(items, columns, strict=True)], axis=1)
    asked = [dict(measured.asks[number].named) for number in rows]
    asked_GA = np.array([[_unit(item, np.array(values[item.name])) for item in items] for values in asked])
    steps_A = np.array([item.high - item.low for item in items])
    present_G = np.isfinite(measured_GA).all(axis=1) & np.isfinite(start_GA).all(axis=1)
    if not present_G.any():
        return None
    owner_G = np.array([measured.asks[number].prompt for number in rows])[present_G]
    measured_GA, asked_GA, start_GA = measured_GA[present_G], asked_GA[present_G], start_GA[present_G]
    per_goal = steering_errors(asked_GA, measured_GA, start_GA)
    per_goal["within_one_level"] = (np.abs(asked_GA - measured_GA) * steps_A <= 1).all(axis=1).astype(np.float64)
    table = np.stack(list(per_goal.values()), axis=1)

    def means(entries: NDArray[np.int64]) -> Floats:
        present = np.isfinite(table[entries])
        with np.errstate(invalid="ignore"):
            return np.asarray(np.where(present, table[entries], 0.0).sum(axis=0) / present.sum(axis=0))

    estimates = bootstrap_figures(means, owner_G, resamples, seed)
    return {
        "goals": len(owner_G),
        "attributes": list(attributes),
        "measures": list(names.values()),
        **{name: estimate._asdict() for name, estimate in zip(per_goal, estimates, strict=True)},
        "coverage": {
            item.name: coverage(item, measured_GA[:, number] * steps_A[number] + item.low)
            for number, item in enumerate(items)
        },
    }


def grid_cells(measured: Measured, attributes: Sequence[str]) -> list[dict[str, Any]]:
    """For each setting of all attributes at once that was asked for: its number of answers, and the mean of every
    measure over them (of perplexities the geometric one).
    """
    cells: dict[Values, list[int]] = {}
    for number in _goal_rows(measured, attributes):
        cells.setdefault(measured.asks[number].named, []).append(number)
    return [
        {
            "asked": dict(asked),
            "n": len(rows),
            "means": {name: _mean(name, column[rows]) for name, column in measured.columns.items()},
        }
        for asked, rows in sorted(cells.items())
    ]


def _mean(name: str, values: Floats) -> float:
    """Over what was measured; NaN where nothing was."""
    present = values[np.isfinite(values)]
    if not len(present):
        return float("nan")
    return float(np.exp(np.log(present).mean()) if name == PERPLEXITY else present.mean())


def _goal_rows(measured: Measured, attributes: Sequence[str]) -> list[int]:
    return [
        number
        for number, ask in enumerate(measured.asks)
        if len(ask.named) == len(attributes) > 1 and ask.paraphrase == 0
    ]


def coverage(attribute: Attribute, measured_G: Floats) -> float:
    """The share of the levels that at least one answer in twenty reaches, rounded, while goals ask for all equally."""
    reached = np.array([attribute.level(float(value)) for value in measured_G])
    return float(np.mean([(reached == level).mean() >= _REACHED for level in attribute.levels]))


def consistency(measured: Measured, attributes: Sequence[str]) -> dict[str, dict[str, Any]] | None:
    """Per attribute: what is measured (its score, in points of its scale, or what of the text stands for it), the
    standard deviation of that when the same request is put in other words, and, beside it, of the same request over
    prompts, at the ends of the scale. Each is the root of a pooled unbiased variance: where the spread is the same, few
    words say the same as many prompts. None where nothing was put in other words.
    """
    found: dict[str, dict[str, Any]] = {}
    for name in attributes:
        own = own_column(name, measured.columns)
        rows = [k for k, ask in enumerate(measured.asks) if len(ask.named) == 1 and ask.named[0][0] == name]
        asks = [measured.asks[k] for k in rows]
        ends = sorted({ask.named[0][1] for ask in asks if ask.paraphrase})
        if own is None or not ends:
            continue
        shape = 1 + max(ask.prompt for ask in asks), len(ends), 1 + max(ask.paraphrase for ask in asks)
        values_PEW = np.full(shape, np.nan)
        for ask, value in zip(asks, measured.columns[own][rows], strict=True):
            if ask.named[0][1] in ends:
                values_PEW[ask.prompt, ends.index(ask.named[0][1]), ask.paraphrase] = value
        several_PEW = values_PEW[np.isfinite(values_PEW[:, :, 1:]).any(axis=(1, 2))]
        found[name] = {
            "measure": own,
            "over_paraphrases": _with_jackknife(_over_paraphrases, several_PEW)._asdict(),
            "over_prompts": _with_jackknife(_over_prompts, values_PEW)._asdict(),
        }
    return found or None


def _over_paraphrases(values_PEW: Floats) -> float:
    return _pooled_deviation(values_PEW.reshape(-1, values_PEW.shape[-1]))


def _over_prompts(values_PEW: Floats) -> float:
    return _pooled_deviation(values_PEW[:, :, 0].T)


def _with_jackknife(deviation: Callable[[Floats], float], values: Floats) -> Estimate:
    """A deviation with its 95% interval, on a logarithmic scale, from leaving out each entry of `values` (a prompt) in
    turn: of few of them, draws give far too narrow an interval of a deviation. Without one of fewer than `MIN_UNITS`.
    """
    value, count = deviation(values), len(values)
    if count < MIN_UNITS or not value > 0:
        return Estimate(value, np.nan, np.nan)
    with np.errstate(divide="ignore", invalid="ignore"):
        logs = np.log([deviation(np.delete(values, k, axis=0)) for k in range(count)])
        reach = float(student.ppf(0.975, count - 1) * np.sqrt((count - 1) * logs.var()))
    return Estimate(value, value * np.exp(-reach), value * np.exp(reach))


def _pooled_deviation(rows: Floats) -> float:
    """The root of the variance within rows, of n entries with n - 1 degrees of freedom each, pooled. Entries that are
    NaN are left out; NaN where no row has two.
    """
    rows = rows[np.isfinite(rows).sum(axis=1) > 1]
    if not len(rows):
        return float("nan")
    freedom = np.isfinite(rows).sum() - len(rows)
    return float(np.sqrt(np.nansum((rows - np.nanmean(rows, axis=1, keepdims=True)) ** 2) / freedom))


def _starts(measured: Measured, attributes: Sequence[Attribute]) -> dict[int, int]:
    """For each prompt an answer of which all is at the defaults."""
    defaults = {item.name: item.default for item in attributes}
    return {
        ask.prompt: number
        for number, ask in enumerate(measured.asks)
        if ask.paraphrase == 0 and len(ask.named) == 1 and defaults.get(ask.named[0][0]) == ask.named[0][1]
    }


def _unit(attribute: Attribute, values: Floats) -> Floats:
    return (values - attribute.low) / (attribute.high - attribute.low)
