"""Scores of the attribute model for every response of whole conversations, in tree-packed batches."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch
from transformers import PreTrainedModel

from steerlm.annotation.settings import ScoreSettings
from steerlm.attention import Form, default_form, use_tree_attention
from steerlm.attributes import Schema
from steerlm.conversation import Conversation
from steerlm.devices import pick_precision
from steerlm.errors import ConfigError, ModelError
from steerlm.models.directory import ModelInfo
from steerlm.models.load import SteerModel
from steerlm.packing import Pack, Report, fit, pack
from steerlm.tokens import TokenTree
from steerlm.training.attribute_model import predict
from steerlm.training.config import TrainSettings
from steerlm.training.task import Batch

_DECIMALS = 4


@dataclass(frozen=True, slots=True)
class Scored:
    """`values[i]` maps the index of each response of conversation `i` to its raw scores by attribute.

    A response that is too long for the context is absent; `report` counts these, and those whose oldest turns
    were cut off.
    """

    values: list[dict[int, dict[str, float]]]
    report: Report


@dataclass(frozen=True, slots=True)
class Fitted:
    """A conversation as it is read for its scores.

    id       of the conversation, for errors
    trees    what fits the context
    report   what fitting did
    cut      the responses that are read without their oldest turns, or not at all
    """

    id: str
    trees: list[TokenTree]
    report: Report
    cut: set[int]


class Scorer:
    """An attribute model ready to score. One at a time: it changes the network's attention while it scores."""

    def __init__(self, model: SteerModel, settings: ScoreSettings | None = None) -> None:
        """Raises `ModelError` for a policy, `ConfigError` for a context beyond the model's own."""
        settings = settings or ScoreSettings()
        if model.info.kind != "attribute-model":
            raise ModelError(f"scoring needs an attribute-model, this is a {model.info.kind}")
        self.model = model
        self.context = settings.context or trained_context(model.info)
        longest = getattr(model.network.config, "max_position_embeddings", None)
        if longest is not None and self.context > longest:
            raise ConfigError(
                f"context={self.context} is beyond the {longest} tokens that the model can read; lower it"
            )
        self.pack_tokens = max(settings.pack_tokens, self.context)
        self.dtype = pick_precision(settings.precision, model.device)
        self.form: Form = default_form(model.device)
        model.network.eval()

    def score(self, conversations: Sequence[Conversation], watch: Callable[[Pack], None] | None = None) -> Scored:
        """Score every assistant message; `watch` is told of each pack as it is handed to the device.

        Raises `ModelError` where a score is not finite.
        """
        return self.score_fitted([self.fit(conversation) for conversation in conversations], watch)

    def fit(self, conversation: Conversation, only: Collection[int] | None = None) -> Fitted:
        """What is read to score every assistant message, or those numbered in `only`."""
        weights = None if only is None else {k: float(k in only) for k in conversation.responses}
        tree = self.model.renderer.tree(conversation, "score", weights=weights)
        fitted, report = fit([tree], self.context, self.pack_tokens)
        cut = {tree.segments[index].message for index in tree.beyond(self.context)}
        return Fitted(conversation.id, fitted, report, cut)

    @torch.no_grad()
    def score_fitted(self, fitted: Sequence[Fitted], watch: Callable[[Pack], None] | None = None) -> Scored:
        """As `score`."""
        report = Report()
        trees = []
        for number, part in enumerate(fitted):
            report += part.report
            # Numbers, not ids, find the way back: a caller's ids need not be unique.
            trees += [replace(tree, conversation=str(number)) for tree in part.trees]
        packs = pack(trees, self.pack_tokens)
        scores = []
        device = self.model.device
        with tree_attention(self.model.network, self.form, self.context), self._computing():
            for item in packs:
                scores.append(predict(self.model, Batch.of(item, device, self.dtype)))
                if watch:
                    watch(item)
        values: list[dict[int, dict[str, float]]] = [{} for _ in fitted]
        for item, scores_RA in zip(packs, scores, strict=True):
            for response, scores_A in zip(item.responses, scores_RA.tolist(), strict=True):
                number = int(response.conversation)
                if not all(map(math.isfinite, scores_A)):
                    raise ModelError(
                        f"conversation {fitted[number].id}, message {response.message}: the model's scores are "
                        "not finite; try --precision fp32, or train the model anew"
                    )
                values[number][response.message] = dict(zip(self.model.schema.names, scores_A, strict=True))
        for scored in values:
            # Packing visits siblings depth first; give messages in their own order.
            ordered = sorted(scored.items())
            scored.clear()
            scored.update(ordered)
        return Scored(values, report)

    def _computing(self) -> torch.autocast:
        return torch.autocast(self.model.device.type, self.dtype, enabled=self.dtype != torch.float32)


def on_scale(schema: Schema, values: Mapping[str, float]) -> dict[str, float]:
    """Raw scores as they are stored: clamped to each attribute's scale, with a fixed number of decimals."""
    return {
        # Adding 0.0 turns -0.0 into 0.0.
        item.name: round(float(min(max(values[item.name], item.low), item.high)), _DECIMALS) + 0.0
        for item in schema
    }


def trained_context(info: ModelInfo) -> int:
    """The context that a model was trained with, or the default of training where it does not say."""
    settings = info.provenance.get("settings")
    context = settings.get("context") if isinstance(settings, dict) else None
    return context if isinstance(context, int) else int(TrainSettings.model_fields["context"].default)


@contextmanager
def tree_attention(network: PreTrainedModel, form: Form, longest: int) -> Iterator[None]:
    """Within the block, the network attends along trees of at most `longest` tokens a path; after it, as before."""
    before = network.config._attn_implementation
    use_tree_attention(network, form, longest)
    try:
        yield
    finally:
        network.set_attn_implementation(before)
