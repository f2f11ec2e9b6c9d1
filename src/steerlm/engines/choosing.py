"""How a request chooses its next token from scores, alike in all local engines.

In numpy: rows are few and their choices short, for which PyTorch's threads take more time to meet than to compute.

Shapes: R rows (a request has one, with guidance two), V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from steerlm.engines.base import Guidance, Request, TokenLogprob

Scores = NDArray[np.float32]
_HEAD = 256
"""So many of the likeliest tokens nearly always have any share of the probability that is asked for."""


class Chooser:
    """The choices of one request: its tokens so far, and a generator of its own."""

    def __init__(self, request: Request, stop_ids: Iterable[int]) -> None:
        self.made: list[int] = []
        self.guidance = request.guidance
        self._sampling = request.sampling
        self._stop_ids = list(stop_ids)
        self._generator = np.random.Generator(np.random.PCG64(request.sampling.seed % (1 << 64)))

    def choose(self, rows: Sequence[Scores]) -> tuple[int, TokenLogprob | None]:
        """The next token, noted in `made`, from the scores [V] of the request's rows."""
        scores = raw = _guided(rows, self.guidance)
        sampling = self._sampling
        if sampling.repetition_penalty != 1 and self.made:
            # The prompt has no part in it: it holds the end signals of earlier turns.
            seen = np.unique(self.made)
            scores = raw.copy()
            penalty = np.float32(sampling.repetition_penalty)
            scores[seen] = np.where(raw[seen] < 0, raw[seen] * penalty, raw[seen] / penalty)
        if len(self.made) < sampling.min_tokens:
            scores = scores.copy()
            scores[self._stop_ids] = -np.inf
        token = self._draw(scores) if sampling.temperature else int(scores.argmax())
        self.made.append(token)
        return token, None if sampling.logprobs is None else _logprob(raw, token, sampling.logprobs)

    def _draw(self, scores: Scores) -> int:
        sampling = self._sampling
        chances = np.exp((scores - scores.max()) / np.float32(sampling.temperature), dtype=np.float64)
        total = chances.sum()
        if 0 < sampling.top_k < len(scores):
            kept = _likeliest(scores, sampling.top_k)
            total = chances[kept].sum()
        elif sampling.top_p < 1:
            kept = _likeliest(scores, _HEAD)
            if chances[kept].sum() < sampling.top_p * total:
                kept = _likeliest(scores, len(scores))
        else:
            return _one_of(chances, self._generator.random())
        # Of the likeliest, those before which less than top_p is reached.
        kept = kept[np.cumsum(chances[kept]) - chances[kept] < sampling.top_p * total]
        return int(kept[_one_of(chances[kept], self._generator.random())])


def choose(scores_RV: Scores, choosers: Sequence[Chooser]) -> list[tuple[int, TokenLogprob | None]]:
    """The next token of each request, from the scores of its rows in order."""
    rows = iter(scores_RV)
    return [one.choose([next(rows) for _ in range(2 if one.guidance else 1)]) for one in choosers]


def prompt_logprobs(scores_TV: Scores, tokens: Sequence[int], count: int) -> list[TokenLogprob]:
    """The log-probability of each token, and the `count` likeliest at its place, from the scores before it."""
    return [_logprob(scores, token, count) for scores, token in zip(scores_TV, tokens, strict=False)]


def _guided(rows: Sequence[Scores], guidance: Guidance | None) -> Scores:
    if guidance is None:
        return rows[0]
    own, other = rows
    return other + np.float32(guidance.factor) * (own - other)


def _likeliest(scores: Scores, count: int) -> NDArray[np.intp]:
    """The places of the highest scores, highest first, and first those that come first."""
    if count == 0:
        return np.empty(0, dtype=np.intp)
    if count < len(scores):
        lowest = np.partition(scores, -count)[-count]
        places = np.flatnonzero(scores >= lowest)
    else:
        places = np.arange(len(scores))
    return places[np.argsort(-scores[places], kind="stable")][:count]


def _one_of(chances: NDArray[np.float64], drawn: float) -> int:
    """The place that a number from 0 to 1 falls on, where places are as wide as their chances."""
    edges = np.cumsum(chances)
    return int(np.searchsorted(edges[:-1], drawn * edges[-1], side="right"))


def _logprob(scores: Scores, token: int, count: int) -> TokenLogprob:
    highest = scores.max()
    total = float(highest) + float(np.log(np.exp(scores - highest, dtype=np.float64).sum()))
    best = _likeliest(scores, count)
    return TokenLogprob(float(scores[token]) - total, tuple((int(one), float(scores[one]) - total) for one in best))
