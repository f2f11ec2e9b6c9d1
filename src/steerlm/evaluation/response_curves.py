"""What happens to an answer when one attribute is set to each of its levels.

Shapes: P prompts, L levels, M measures, B draws of prompts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from steerlm.attributes import Attribute, Schema
from steerlm.evaluation.answers import PERPLEXITY, Measured, is_score, own_column, proxy, score_columns
from steerlm.evaluation.bootstrap import (
    MIN_UNITS,
    Estimate,
    bootstrap_figures,
    draw_weights,
    mean_draws,
    mean_estimates,
    with_intervals,
)
from steerlm.training.metrics import spearman

Floats = NDArray[np.float64]
MIN_WITHIN, MIN_SLOPE = 0.2, 0.1
RULE = (
    f"An attribute steers where the 95% interval (bootstrap over prompts) of the mean, over prompts, of Spearman's "
    f"correlation of asked and measured within a prompt lies above {MIN_WITHIN}, and, where a score on the attribute's "
    f"own scale is measured, that of the slope of measured on asked above {MIN_SLOPE}. Of fewer than {MIN_UNITS} "
    f"prompts there is no verdict; a prompt counts where its answers at all levels are measured."
)


@dataclass(frozen=True)
class Sweep:
    """The answers of one attribute's sweep: `values_PLM[p, l, m]` is measure m of the answer to prompt p at level l."""

    attribute: Attribute
    columns: tuple[str, ...]
    values_PLM: Floats
    cut_L: Floats
    unscored: Mapping[str, tuple[int, ...]]
    """By instrument (see `Measured.unscored`): of how many answers at each level it said nothing."""
    texts: tuple[tuple[str, ...], ...]

    def column(self, name: str) -> Floats:
        """One measure, [P, L]."""
        return self.values_PLM[:, :, self.columns.index(name)]

    @property
    def own(self) -> str | None:
        """The measure of the attribute itself."""
        return own_column(self.attribute.name, self.columns)

    @property
    def own_has_scale(self) -> bool:
        return is_score(self.own)


def sweep_of(measured: Measured, attribute: Attribute) -> Sweep:
    """The rows of `measured` that set this attribute alone."""
    rows = {
        (ask.prompt, ask.named[0][1]): number
        for number, ask in enumerate(measured.asks)
        if ask.paraphrase == 0 and len(ask.named) == 1 and ask.named[0][0] == attribute.name
    }
    prompts = sorted({prompt for prompt, _ in rows})
    index_PL = np.array([[rows[prompt, level] for level in attribute.levels] for prompt in prompts])
    values_PLM = np.stack([column[index_PL] for column in measured.columns.values()], axis=-1)
    cut_PL = np.array([[measured.answers[number].cut for number in row] for row in index_PL], dtype=np.float64)
    unscored = {name: tuple(map(int, found[index_PL].sum(axis=0))) for name, found in measured.unscored().items()}
    texts = tuple(tuple(measured.answers[number].text for number in row) for row in index_PL)
    return Sweep(attribute, tuple(measured.columns), values_PLM, cut_PL.mean(axis=0), unscored, texts)


def sweep_figures(sweep: Sweep, schema: Schema, resamples: int, seed: int) -> dict[str, Any]:
    """All figures of a sweep, as plain data."""
    prompts, levels, measures = sweep.values_PLM.shape
    weights_BP = draw_weights(prompts, resamples, seed)
    flat = mean_estimates(sweep.values_PLM.reshape(prompts, levels * measures), weights_BP)
    curves = {
        name: [flat[level * measures + number]._asdict() for level in range(levels)]
        for number, name in enumerate(sweep.columns)
    }
    changes = mean_estimates(sweep.values_PLM[:, -1] - sweep.values_PLM[:, 0], weights_BP)
    effects = {name: change._asdict() for name, change in zip(sweep.columns, changes, strict=True)}
    if PERPLEXITY in sweep.columns:
        *curves[PERPLEXITY], effects[PERPLEXITY] = _geometric(sweep.column(PERPLEXITY), weights_BP)
    record: dict[str, Any] = {
        "levels": list(sweep.attribute.levels),
        "default": sweep.attribute.default,
        "prompts": prompts,
        "curves": curves,
        "effects": effects,
        "within": _within_estimates(sweep, weights_BP),
        "cut": sweep.cut_L.tolist(),
        "unscored": {instrument: list(counts) for instrument, counts in sweep.unscored.items()},
        "ratio_of_length": _length_ratio(sweep, resamples, seed)._asdict(),
        "quality_cost": _quality_cost(sweep, schema, weights_BP),
        "own": sweep.own,
    }
    if sweep.own is None:
        return {**record, "verdict": "not measured", "why": "no attribute model measures it"}
    return record | _own_figures(sweep, sweep.own, weights_BP, resamples, seed)


def _geometric(values_PL: Floats, weights_BP: Floats) -> list[dict[str, float]]:
    """Geometric means at each level, and of the highest less the lowest. A few answers that the base finds absurd
    would make up nearly all of an arithmetic mean of perplexities.
    """
    whole_L, draws_BL = map(np.exp, mean_draws(np.log(values_PL), weights_BP))
    whole, draws = (np.append(found, found[..., -1:] - found[..., :1], axis=-1) for found in (whole_L, draws_BL))
    return [estimate._asdict() for estimate in with_intervals(whole, draws)]


def _own_figures(sweep: Sweep, own: str, weights_BP: Floats, resamples: int, seed: int) -> dict[str, Any]:
    """How the attribute's own measure follows what is asked."""
    values_PL = sweep.column(own)
    levels_L = np.array(sweep.attribute.levels, dtype=np.float64)
    table = _obedience(sweep, own)
    within, slope, miss = mean_estimates(table, weights_BP)
    measured_PL = values_PL[np.isfinite(values_PL).any(axis=1)]

    def pooled(chosen: NDArray[np.int64]) -> Floats:
        asked, found = np.tile(levels_L, len(chosen)), measured_PL[chosen].ravel()
        present = np.isfinite(found)
        return np.array([spearman(asked[present], found[present])])

    rank = bootstrap_figures(pooled, np.arange(len(measured_PL)), resamples, seed)[0]
    verdict, why = judge_steering(within, slope if sweep.own_has_scale else None, _fewest_prompts(table))
    return {
        "spearman": rank._asdict(),
        "within_prompt": within._asdict(),
        "slope": slope._asdict() if sweep.own_has_scale else None,
        "miss": miss._asdict() if sweep.own_has_scale else None,
        "length_controlled": [
            length_controlled(sweep, name, resamples, seed)
            for name in dict.fromkeys([own, proxy(sweep.attribute.name, sweep.columns)])
            if name and name != "characters"
        ],
        "verdict": verdict,
        "why": why,
    }


def _obedience(sweep: Sweep, own: str) -> Floats:
    """For each prompt how a measure follows what is asked: rank correlation, slope, mean miss, [P, 3]."""
    values_PL = sweep.column(own)
    levels_L = np.array(sweep.attribute.levels, dtype=np.float64)
    within_P = np.array([_within(levels_L, row_L) for row_L in values_PL])
    centred_L = levels_L - levels_L.mean()
    slope_P = values_PL @ centred_L / (centred_L @ centred_L)
    return np.stack([within_P, slope_P, np.abs(values_PL - levels_L).mean(axis=1)], axis=1)


def _fewest_prompts(figures: Floats) -> int:
    """Of figures of prompts, [P, any]: how many prompts have that which the fewest have."""
    return int(np.isfinite(figures).sum(axis=0).min())


def against(sweep: Sweep, other: Sweep, steers: bool, resamples: int, seed: int) -> dict[str, Any] | None:
    """How much better a sweep follows what is asked than another one of the same prompts, such as that of the base:
    what it gains in correlation within a prompt, in slope, and in how little it misses, and the verdict. One that does
    not steer is not better, however near the answers lie to what is asked on the whole. None where nothing measures the
    attribute.
    """
    if sweep.own is None:
        return None
    differences = (_obedience(sweep, sweep.own) - _obedience(other, sweep.own)) * (1, 1, -1)
    within, slope, miss = mean_estimates(differences, draw_weights(len(differences), resamples, seed))
    decisive = [slope, miss] if sweep.own_has_scale else [within]
    better, worse = any(gain.low > 0 for gain in decisive), any(gain.high < 0 for gain in decisive)
    verdict = {(True, False): "better", (False, True): "worse", (True, True): "better and worse"}.get(
        (better, worse), "no difference shown"
    )
    if better and not steers:
        verdict = "does not steer"
    if _fewest_prompts(differences) < MIN_UNITS:
        verdict = "too few prompts"
    return {
        "within_prompt": within._asdict(),
        "slope": slope._asdict() if sweep.own_has_scale else None,
        "miss": miss._asdict() if sweep.own_has_scale else None,
        "verdict": verdict,
    }


def judge_steering(within: Estimate, slope: Estimate | None, prompts: int) -> tuple[str, str]:
    """The verdict by `RULE` on the measured prompts, and the figures behind it."""
    passed = within.low > MIN_WITHIN and (slope is None or slope.low > MIN_SLOPE)
    why = f"correlation within a prompt {_shown(within)}"
    if slope is not None:
        why += f", slope {_shown(slope)}"
    if prompts < MIN_UNITS:
        return "too few prompts", f"{prompts} of at least {MIN_UNITS}; {why}"
    return ("steers" if passed else "does not steer"), why


def _shown(estimate: Estimate) -> str:
    value, low, high = estimate
    if not np.isfinite(value):
        return "not measured"
    return f"{value:.2f} [{low:.2f}, {high:.2f}]" if np.isfinite(low) else f"{value:.2f}"


def _within_estimates(sweep: Sweep, weights_BP: Floats) -> dict[str, Any]:
    """For every measure the mean over prompts of its rank correlation with what is asked."""
    levels_L = np.array(sweep.attribute.levels, dtype=np.float64)
    within_PM = np.array([[_within(levels_L, row_L) for row_L in row_LM.T] for row_LM in sweep.values_PLM])
    estimates = mean_estimates(within_PM, weights_BP)
    return {name: estimate._asdict() for name, estimate in zip(sweep.columns, estimates, strict=True)}


def _within(levels_L: Floats, values_L: Floats) -> float:
    """The rank correlation of a single prompt; 0 where all answers measure the same: nothing follows the request."""
    present_L = np.isfinite(values_L)
    if present_L.sum() < 2:
        return float("nan")
    if np.ptp(values_L[present_L]) == 0:
        return 0.0
    if present_L.sum() == 2:
        return float(np.sign(np.diff(values_L[present_L])[0]))
    return spearman(levels_L[present_L], values_L[present_L])


def length_controlled(sweep: Sweep, own: str, resamples: int, seed: int) -> dict[str, Any]:
    """The curve of a measure with what length explains taken away: within prompts and levels the measure is regressed
    on the logarithm of the length, and each level is moved to the mean length.
    """
    values_PL = sweep.column(own)
    kept_P = np.isfinite(values_PL).all(axis=1)
    values_PL, length_PL = values_PL[kept_P], np.log1p(sweep.column("characters")[kept_P])

    def adjusted(chosen: NDArray[np.int64]) -> Floats:
        y_PL, x_PL = values_PL[chosen], length_PL[chosen]
        if not len(y_PL):
            return np.full(values_PL.shape[1] + 1, np.nan)
        rest_y, rest_x = _residuals(y_PL), _residuals(x_PL)
        power = float((rest_x**2).sum())
        beta = float((rest_x * rest_y).sum()) / power if power > 1e-9 else 0.0
        curve_L = y_PL.mean(axis=0) - beta * (x_PL.mean(axis=0) - x_PL.mean())
        return np.array([*curve_L, curve_L[-1] - curve_L[0]])

    *curve, effect = bootstrap_figures(adjusted, np.arange(len(values_PL)), resamples, seed)
    return {"measure": own, "curve": [point._asdict() for point in curve], "effect": effect._asdict()}


def _residuals(values_PL: Floats) -> Floats:
    """What is left without the means of prompts and of levels."""
    rest_PL: Floats = values_PL - values_PL.mean(axis=1, keepdims=True) - values_PL.mean(axis=0) + values_PL.mean()
    return rest_PL


def _length_ratio(sweep: Sweep, resamples: int, seed: int) -> Estimate:
    """How many times longer answers at the highest level are than at the lowest."""
    characters_PL = sweep.column("characters")

    def ratio(chosen: NDArray[np.int64]) -> Floats:
        bottom = characters_PL[chosen, 0].mean()
        return np.array([characters_PL[chosen, -1].mean() / bottom if bottom else np.nan])

    return bootstrap_figures(ratio, np.arange(len(characters_PL)), resamples, seed)[0]


def _quality_cost(sweep: Sweep, schema: Schema, weights_BP: Floats) -> dict[str, Any] | None:
    """What the ends of the scale do, against the default level, to the mean score of the attributes of which more is
    better (the swept one left out, after one attribute model was chosen for them all).
    """
    good = score_columns((item.name for item in schema if item.desirable == "high"), sweep.columns)
    good.pop(sweep.attribute.name, None)
    if not good:
        return None
    quality_PL = np.mean([sweep.column(column) for column in good.values()], axis=0)
    default = sweep.attribute.default - sweep.attribute.low
    low, high = mean_estimates(quality_PL[:, [0, -1]] - quality_PL[:, [default]], weights_BP)
    return {
        "of": list(good),
        "measures": list(good.values()),
        "at_lowest": low._asdict(),
        "at_highest": high._asdict(),
    }


def leakage(figures: Mapping[str, Mapping[str, Any]], schema: Schema) -> dict[str, dict[str, Any]]:
    """`leakage[i][j]`: how far the score of j moves when i goes from the bottom of its scale to the top, and which
    measure that is; all scores are those of one attribute model.
    """
    return {
        name: {
            other: {"measure": column, **row["effects"][column]}
            for other, column in score_columns(schema.names, row["effects"]).items()
        }
        for name, row in figures.items()
    }


def examples(sweep: Sweep, prompts: Sequence[str], count: int = 2) -> list[dict[str, Any]]:
    """The answers to the first prompts at every level."""
    return [
        {"prompt": prompts[number], "answers": list(sweep.texts[number])}
        for number in range(min(count, len(sweep.texts)))
    ]
