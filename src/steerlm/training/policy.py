"""Attribute-conditioned supervised fine-tuning of the policy (arXiv 2310.05344, step 3).

Beside the likelihood of each response under its own label line, an optional contrastive term puts the same
response under the labels of another one and asks that its own be the likelier: the dependence on the labels that
a small model otherwise overlooks.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from random import Random
from typing import Any, Literal

from torch import Tensor

from steerlm.attributes import Attribute, Schema
from steerlm.conversation import Conversation, Message
from steerlm.dialects import Labels
from steerlm.errors import DataError
from steerlm.losses import LossSum, contrast, linear_nll, linear_weighted_nll, token_nll, weighted_nll
from steerlm.models.load import SteerModel, hidden_states, plain_head
from steerlm.packing import Pack
from steerlm.tokens import TokenTree
from steerlm.training.config import PolicySettings
from steerlm.training.plan import random_for
from steerlm.training.survey import Survey
from steerlm.training.task import Batch, OnMain, Passes, Term

FoilKind = Literal["none", "sibling", "changed"]


def stretches(survey: Survey) -> dict[str, tuple[float, float, float]]:
    """For each attribute with responses that people rated and the attribute model judged: the mean of its predictions
    there, by what to multiply their distance from it, and the mean of the ratings. So stretched, predictions have the
    mean and the deviation of the ratings of the same responses.
    """
    return {
        name: (predicted.mean, rated.deviation / predicted.deviation, rated.mean)
        for name, (rated, predicted) in survey.paired.items()
        if rated.deviation > 0 and predicted.deviation > 0
    }


@dataclass(frozen=True, slots=True)
class ByRank:
    """Predictions of an attribute dealt out over its scale: each level goes to equally many responses.

    Equal predictions are on one level, so that many of them make it larger than others. An end of the scale, where
    predictions are cut off, keeps to its own level however many they are; the rest is dealt over the other levels.
    """

    attribute: Attribute
    values: Sequence[float]
    """Those that are dealt out, ascending."""
    levels: range
    """Those that they are dealt over."""

    @classmethod
    def of(cls, attribute: Attribute, values: Sequence[float]) -> ByRank:
        """All `values` of the data, in any order."""
        rest, levels = sorted(values), attribute.levels
        # Without the crowd at one end a level has fewer responses, which may make a crowd of those at the other.
        for _ in range(2):
            fair = len(rest) / len(levels)
            at_low, below_high = bisect_right(rest, attribute.low), bisect_left(rest, attribute.high)
            is_low_full, is_high_full = at_low > fair, len(rest) - below_high > fair
            rest = rest[at_low if is_low_full else 0 : below_high if is_high_full else None]
            levels = levels[is_low_full : len(levels) - is_high_full]
        return cls(attribute, rest, levels)

    def place(self, value: float) -> float:
        """Where `value` belongs on the scale, as a number that rounds to its level."""
        if not self.attribute.low < value < self.attribute.high:
            return float(self.attribute.level(value))
        below, through = bisect_left(self.values, value), bisect_right(self.values, value)
        share = (below + through) / 2 / len(self.values) if self.values else 0.5
        return self.levels.start - 0.5 + share * len(self.levels)


def by_rank(survey: Survey, schema: Schema, names: Sequence[str]) -> dict[str, ByRank]:
    """Of the attributes `names`; raises `DataError` for one that no prediction in the survey's sample is of."""
    found = {}
    for name in names:
        values = [message.predicted[name] for message in survey.sample if name in message.predicted]
        if not values:
            raise DataError(f"rank_attributes names {name}, which is predicted for no response")
        found[name] = ByRank.of(schema[name], values)
    return found


@dataclass(frozen=True, slots=True)
class Measured:
    """Of one pack: the loss of its responses as sum and count, and the gap of each that has a foil, in nats."""

    nll: float
    tokens: float
    gaps: tuple[float, ...]


@dataclass
class PolicyTask:
    """See `steerlm.training.task.Task`."""

    model: SteerModel
    settings: PolicySettings

    def __post_init__(self) -> None:
        self.best_by: str | None = self.settings.best_by
        self.higher_is_better = self.settings.best_by in ("gap", "gap_won")
        self._others: list[dict[str, float]] = []
        self._stretch: dict[str, tuple[float, float, float]] = {}
        self._by_rank: dict[str, ByRank] = {}
        self._bare = 0
        self._with_foils: float | None = None

    def remember(self, survey: Survey) -> None:
        """Keep label lines of the data, from which responses without siblings draw their foils.

        Raises `DataError` where no response carries labels, or none of an attribute that the contrast is to change, or
        none has a label there that is far enough from another one's.
        """
        for setting in ("contrast_attributes", "rank_attributes"):
            if lacking := [name for name in getattr(self.settings, setting) if name not in self.model.schema]:
                raise DataError(
                    f"{setting} names {', '.join(lacking)}, of which no response carries a label; "
                    f"the data label {', '.join(self.model.schema.names)}"
                )
        if self.settings.match_spread:
            self._stretch = stretches(survey)
        self._by_rank = by_rank(survey, self.model.schema, self.settings.rank_attributes)
        self._others = [values for message in survey.sample if (values := self._labels(message))]
        self._bare = survey.responses - (survey.predicted if self.settings.labels == "predicted" else survey.labelled)
        if self._bare == survey.responses:
            raise DataError(self._what_lacks(survey))
        if self.settings.contrast_attributes:
            self._count_foils()

    def _count_foils(self) -> None:
        """How many responses have one in reach; raises `DataError` where none has."""
        names = self.settings.contrast_attributes
        values = {name: [other[name] for other in self._others if name in other] for name in names}
        ends = {name: (min(found), max(found)) for name, found in values.items() if found}
        reached = sum(
            any(self._is_far(name, own[name], end) for name in names if name in own for end in ends[name])
            for own in self._others
        )
        if not reached:
            seen = ", ".join(
                f"{name} {self.model.schema[name].level(low)} to {self.model.schema[name].level(high)}"
                for name, (low, high) in ends.items()
            )
            raise DataError(
                "contrast_attributes: no two responses are labelled half the scale apart, so that none has a foil "
                f"(the labels are {seen}); spread predicted labels with match_spread or rank_attributes, or leave out "
                "contrast_attributes"
            )
        self._with_foils = reached / len(self._others)

    def _what_lacks(self, survey: Survey) -> str:
        source = self.settings.data[0] if self.settings.data else Path("DATA.jsonl")
        made = source.with_name(f"{source.name.split('.')[0]}.annotated.jsonl")
        annotate = f"`steerlm annotate {source} --model ATTRIBUTE_MODEL --out {made}`, then train with --data {made}"
        if survey.rated:
            return (
                "no response carries predicted labels to condition on, but people rated some: train with "
                f"--labels ratings-first, or predict labels first: {annotate}"
            )
        return (
            "no response carries labels to condition on; predict them with an attribute model (`steerlm train "
            f"attributes` makes one from rated data): {annotate}"
        )

    def prepare(
        self, conversations: Sequence[Conversation], passes: Passes[Any], on_main: OnMain[Any]
    ) -> dict[str, Any]:
        foils = {} if self._with_foils is None else {"share_with_foils": self._with_foils}
        return {"responses_without_labels": self._bare, **foils}

    def tree(self, conversation: Conversation, epoch: int) -> TokenTree:
        kind: FoilKind = "none"
        if self.settings.contrast > 0:
            kind = "changed" if self.settings.contrast_attributes else "sibling"
        return self._tree(conversation, epoch, self.settings.label_dropout, kind)

    def _tree(self, conversation: Conversation, epoch: int, dropout: float, foils: FoilKind) -> TokenTree:
        labels = {index: self._labels(conversation.messages[index]) for index in conversation.responses}
        threads = conversation.threads_through
        weights = {
            index: 0.0 if not labels[index] else float(threads[index]) if self.settings.thread_weights else 1.0
            for index in conversation.responses
        }
        random = random_for(self.settings.seed, epoch, conversation.id)
        chosen: dict[int, list[dict[str, float]]] = {}
        if foils == "sibling":
            chosen = self._siblings(conversation, labels, random)
        elif foils == "changed":
            chosen = {index: changed for index, own in labels.items() if (changed := self._changed(own, random))}
        if dropout:
            for index in conversation.responses:
                kept = {name for name in self.model.schema.names if random.random() >= dropout}
                labels[index] = _only(labels[index], kept)
                foil = [_only(other, kept) for other in chosen.pop(index, [])]
                if foil and _differ(self.model.schema, labels[index], foil[0]):
                    chosen[index] = foil
        return self.model.renderer.tree(conversation, "policy", labels, weights, chosen)

    def _labels(self, message: Message) -> dict[str, float]:
        """Held-out data may carry labels of attributes that the data to train on, and so the model, has not."""
        predicted = dict(message.predicted)
        for name, (middle, factor, target) in self._stretch.items():
            if name in predicted:
                predicted[name] = target + factor * (predicted[name] - middle)
        for name, ranked in self._by_rank.items():
            if name in predicted:
                predicted[name] = ranked.place(message.predicted[name])
        return self.model.schema.known(replace(message, predicted=predicted).labels(self.settings.labels))

    def _changed(self, own: Labels, random: Random) -> list[dict[str, float]]:
        """Labels with the contrast's attributes as some other response has them, one of them at least half the scale
        away; none where there is no such. Nearer labels differ by less than answers under one of them do.

        Taken together and from the data, values are as often the wrong ones as they are the right ones. Combinations
        that were mostly wrong would become those under which nothing is likely.
        """
        names = [name for name in self.settings.contrast_attributes if name in own]
        drawn = (random.choice(self._others) for _ in range(16 if names and self._others else 0))
        return [
            {**own, **{name: other[name] for name in names if name in other}}
            for other in drawn
            if any(self._is_far(name, own[name], other[name]) for name in names if name in other)
        ][:1]

    def _is_far(self, name: str, own: float, other: float) -> bool:
        item = self.model.schema[name]
        return abs(item.level(own) - item.level(other)) >= len(item.levels) // 2

    def _siblings(
        self, conversation: Conversation, labels: Mapping[int, Labels], random: Random
    ) -> dict[int, list[dict[str, float]]]:
        """For each response other labels over the same attributes: a sibling's, or those of any other response."""
        schema = self.model.schema
        found = {}
        for index in conversation.responses:
            own = labels[index]
            if not own:
                continue
            parent = conversation.messages[index].parent
            siblings = conversation.children[parent] if parent is not None else ()
            pool = [labels[other] for other in siblings if other in labels and other != index and labels[other]]
            candidates = [c for c in (_over(own, other) for other in pool) if _differ(schema, own, c)]
            if not candidates and self._others:
                tries = (_over(own, random.choice(self._others)) for _ in range(8))
                candidates = [c for c in tries if _differ(schema, own, c)][:1]
            if candidates:
                found[index] = [random.choice(candidates)]
        return found

    def terms(self, packs: Sequence[Pack]) -> Mapping[str, Term]:
        tokens = float(sum(weights_of_own(pack).sum() for pack in packs))
        terms = {"nll": Term(1.0, tokens)}
        if self.settings.contrast:
            pairs = sum(response.foil_of >= 0 for pack in packs for response in pack.responses)
            terms["contrast"] = Term(self.settings.contrast, float(pairs))
        return terms

    def losses(self, batch: Batch) -> Mapping[str, LossSum]:
        own, other = foil_pairs(batch.pack)
        weights_N = batch.tensor(weights_of_own(batch.pack))
        if not own:
            return {"nll": response_loss(self.model, batch, weights_N, self.settings.loss_chunk)}
        nll_N = response_nll(self.model, batch, self.settings.loss_chunk)
        sums_R = likelihoods(nll_N, batch)
        return {
            "nll": weighted_nll(nll_N, weights_N),
            "contrast": contrast(sums_R[own], sums_R[other], self.settings.contrast_sharpness),
        }

    def held_out_tree(self, conversation: Conversation) -> TokenTree:
        """All labels, and a foil for every response, with or without the contrastive term."""
        return self._tree(conversation, -1, 0.0, "sibling")

    def measure(self, batch: Batch) -> Measured:
        nll_N = response_nll(self.model, batch, self.settings.loss_chunk)
        loss = weighted_nll(nll_N, batch.tensor(weights_of_own(batch.pack)))
        own, other = foil_pairs(batch.pack)
        sums_R = likelihoods(nll_N, batch)
        return Measured(loss.total.item(), loss.count.item(), tuple((sums_R[own] - sums_R[other]).tolist()))

    def figures(self, measured: Sequence[Measured]) -> dict[str, Any]:
        """Loss in nats a token, and the gap log p(y | own labels) - log p(y | sibling's labels) in nats a response.

        Where no sibling has other labels, they are those of a response to train on: data without siblings have a gap
        too.
        """
        tokens = sum(pack.tokens for pack in measured)
        if not tokens:
            raise DataError(
                f"no held-out response carries labels, or all that do are beyond context={self.settings.context}; hold "
                "out more conversations, annotate them, or raise context"
            )
        gaps = [gap for pack in measured for gap in pack.gaps]
        figures: dict[str, Any] = {"loss": sum(pack.nll for pack in measured) / tokens, "tokens": int(tokens)}
        if gaps:
            figures["gap"] = sum(gaps) / len(gaps)
            figures["gap_won"] = sum(gap > 0 for gap in gaps) / len(gaps)
            figures["gap_pairs"] = len(gaps)
        return figures


def response_nll(model: SteerModel, batch: Batch, chunk: int) -> Tensor:
    """-log p of every trained token of a pack, [N], with logits of at most `chunk` tokens at a time."""
    rows_N, targets_N = batch.tensor(batch.pack.rows_N), batch.tensor(batch.pack.targets_N)
    if (head := plain_head(model.network)) is not None:
        weight_VD, rows = head
        return linear_nll(hidden_states(model.network, **batch.inputs())[0, rows_N], weight_VD, targets_N, chunk, rows)
    logits_1NV = model.network(**batch.inputs(), logits_to_keep=rows_N, use_cache=False).logits
    return token_nll(logits_1NV[0], targets_N)


def response_loss(model: SteerModel, batch: Batch, weights_N: Tensor, chunk: int) -> LossSum:
    """`weighted_nll` of `response_nll`, where nothing else is asked of the single tokens."""
    head = plain_head(model.network)
    if head is None:
        return weighted_nll(response_nll(model, batch, chunk), weights_N)
    weight_VD, rows = head
    rows_N, targets_N = batch.tensor(batch.pack.rows_N), batch.tensor(batch.pack.targets_N)
    states_ND = hidden_states(model.network, **batch.inputs())[0, rows_N]
    return linear_weighted_nll(states_ND, weight_VD, targets_N, weights_N, chunk, rows)


def weights_of_own(pack: Pack) -> Any:
    """Loss weights with those of foils set to 0, [N]."""
    own = [response.foil_of < 0 for response in pack.responses]
    return pack.weights_N * [own[owner] for owner in pack.owner_N] if len(pack.owner_N) else pack.weights_N


def foil_pairs(pack: Pack) -> tuple[list[int], list[int]]:
    """Indices of the responses that have a foil, and of those foils."""
    other = [index for index, response in enumerate(pack.responses) if response.foil_of >= 0]
    return [pack.responses[index].foil_of for index in other], other


def likelihoods(nll_N: Tensor, batch: Batch) -> Tensor:
    """Log p(response | labels, prompt) in nats, [R]: the sum over its tokens and its end signal."""
    zeros_R = nll_N.new_zeros(len(batch.pack.responses))
    return zeros_R.index_add(0, batch.tensor(batch.pack.owner_N), -nll_N)


def _only(values: Labels, names: set[str]) -> dict[str, float]:
    return {name: value for name, value in values.items() if name in names}


def _over(own: Labels, other: Labels) -> dict[str, float]:
    """`other`'s values on `own`'s attributes; where it has none, `own`'s stay."""
    return {name: other.get(name, value) for name, value in own.items()}


def _differ(schema: Schema, own: Labels, other: Labels) -> bool:
    return schema.label_line(own) != schema.label_line(other)
