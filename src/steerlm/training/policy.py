"""Attribute-conditioned supervised fine-tuning of the policy (arXiv 2310.05344, step 3).

Beside the likelihood of each response under its own label line, an optional contrastive term puts the same
response under the labels of another one and asks that its own be the likelier: the dependence on the labels that
a small model otherwise overlooks.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from steerlm.attributes import Schema
from steerlm.conversation import Conversation, Message
from steerlm.dialects import Labels
from steerlm.errors import DataError
from steerlm.losses import LossSum, contrast, token_nll, weighted_nll
from steerlm.models.load import SteerModel
from steerlm.packing import Pack
from steerlm.tokens import TokenTree
from steerlm.training.config import LabelSource, PolicySettings
from steerlm.training.plan import random_for
from steerlm.training.task import Batch, Term, make_packs


def labels_of(message: Message, source: LabelSource) -> dict[str, float]:
    """The attribute values that head a response: predicted, or rated by people with predictions for the rest."""
    return dict(message.predicted) if source == "predicted" else {**message.predicted, **message.ratings}


def require_labels(conversations: Sequence[Conversation], source: LabelSource) -> int:
    """The number of responses without any label. Raises `DataError` where no response has one."""
    responses = [c.messages[index] for c in conversations for index in c.responses]
    bare = sum(not labels_of(message, source) for message in responses)
    if bare == len(responses):
        raise DataError(
            "no response carries labels to condition on; run `steerlm annotate` on the data first, "
            "or train with --labels ratings-first on rated data"
        )
    return bare


@dataclass
class PolicyTask:
    """See `steerlm.training.task.Task`."""

    model: SteerModel
    settings: PolicySettings
    better: str = "lower"
    criterion: str = "loss"
    keep_best: bool = False

    def __post_init__(self) -> None:
        self._others: list[dict[str, float]] = []

    def prepare(self, conversations: Sequence[Conversation]) -> dict[str, Any]:
        return {"responses_without_labels": require_labels(conversations, self.settings.labels)}

    def remember(self, conversations: Sequence[Conversation]) -> None:
        """Collect the label lines of the data, from which responses without siblings draw their foils."""
        found = [self._labels(c.messages[index]) for c in conversations for index in c.responses]
        self._others = [values for values in found if values]

    def tree(self, conversation: Conversation, epoch: int) -> TokenTree:
        return self._tree(conversation, epoch, self.settings.label_dropout, foils=self.settings.contrast > 0)

    def _tree(self, conversation: Conversation, epoch: int, dropout: float, foils: bool) -> TokenTree:
        labels = {index: self._labels(conversation.messages[index]) for index in conversation.responses}
        threads = conversation.threads_through
        weights = {
            index: 0.0 if not labels[index] else float(threads[index]) if self.settings.thread_weights else 1.0
            for index in conversation.responses
        }
        random = random_for(self.settings.seed, epoch, conversation.id)
        chosen = self._foils(conversation, labels, random) if foils else {}
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
        return self.model.schema.known(labels_of(message, self.settings.labels))

    def _foils(
        self, conversation: Conversation, labels: Mapping[int, Labels], random: Any
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
        pairs = sum(response.foil_of >= 0 for pack in packs for response in pack.responses)
        terms = {"nll": Term(1.0, tokens)}
        if pairs:
            terms["contrast"] = Term(self.settings.contrast, float(pairs))
        return terms

    def losses(self, batch: Batch) -> Mapping[str, LossSum]:
        nll_N = response_nll(self.model, batch)
        losses = {"nll": weighted_nll(nll_N, batch.tensor(weights_of_own(batch.pack)))}
        own, other = foil_pairs(batch.pack)
        if own:
            sums_R = likelihoods(nll_N, batch)
            losses["contrast"] = contrast(sums_R[own], sums_R[other], self.settings.contrast_sharpness)
        return losses

    @torch.no_grad()
    def validate(self, conversations: Sequence[Conversation]) -> dict[str, Any]:
        """Loss in nats a token, and the gap log p(y | own labels) - log p(y | sibling's labels) in nats a response."""
        require_labels(conversations, self.settings.labels)
        trees = [self._tree(conversation, -1, 0.0, foils=True) for conversation in conversations]
        total = count = 0.0
        gaps: list[float] = []
        for pack in make_packs(trees, self.settings.context, self.settings.pack_tokens):
            batch = Batch.of(pack, self.model.device)
            nll_N = response_nll(self.model, batch)
            loss = weighted_nll(nll_N, batch.tensor(weights_of_own(pack)))
            total, count = total + loss.total.item(), count + loss.count.item()
            own, other = foil_pairs(pack)
            sums_R = likelihoods(nll_N, batch)
            gaps += (sums_R[own] - sums_R[other]).tolist()
        figures: dict[str, Any] = {"loss": total / max(count, 1.0), "tokens": int(count)}
        if gaps:
            figures["gap"] = sum(gaps) / len(gaps)
            figures["gap_won"] = sum(gap > 0 for gap in gaps) / len(gaps)
            figures["gap_pairs"] = len(gaps)
        return figures


def response_nll(model: SteerModel, batch: Batch) -> Tensor:
    """-log p of every trained token of a pack, [N]; logits are made for these rows only."""
    rows_N = batch.tensor(batch.pack.rows_N)
    logits_1NV = model.network(**batch.inputs(), logits_to_keep=rows_N, use_cache=False).logits
    return token_nll(logits_1NV[0], batch.tensor(batch.pack.targets_N))


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
