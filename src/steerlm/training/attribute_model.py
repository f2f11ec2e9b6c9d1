"""Training of the attribute model: a regression of human ratings, read at the end of each response
(arXiv 2311.09528, section 4.4). Shapes: R responses, A attributes, D hidden.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from steerlm.attributes import Schema
from steerlm.conversation import Conversation
from steerlm.errors import DataError
from steerlm.losses import LossSum, masked_squared_error
from steerlm.models.load import SteerModel, head_of, hidden_states
from steerlm.packing import Pack
from steerlm.tokens import TokenTree
from steerlm.training.config import AttributeSettings
from steerlm.training.metrics import agreement_by_attribute
from steerlm.training.ridge import start_ridge
from steerlm.training.task import Batch, Term, make_packs

# Of every conversation, by id, the ratings of each of its messages.
Ratings = Mapping[str, tuple[Mapping[str, float], ...]]


@dataclass
class AttributeTask:
    """See `steerlm.training.task.Task`."""

    model: SteerModel
    settings: AttributeSettings
    better: str = "lower"
    criterion: str = "loss"
    keep_best: bool = True

    def __post_init__(self) -> None:
        schema = self.model.schema
        schema_weights = dict.fromkeys(schema.names, 1.0)
        for name, weight in self.settings.loss_weights.items():
            schema_weights[schema[name].name] = weight
        self._weights_A = torch.tensor([schema_weights[name] for name in schema.names], device=self.model.device)
        self._ratings: Ratings = {}
        self._means_A: NDArray[np.float64] = np.full(len(schema), np.nan)

    def remember(self, conversations: Sequence[Conversation]) -> None:
        """Collect the ratings of the data and their means, the baseline that the model has to beat."""
        self._ratings = ratings_of(conversations)
        rated = [values for messages in self._ratings.values() for values in messages]
        table_RA = rating_table(self.model.schema, rated)
        if np.isnan(table_RA).all():
            raise DataError("no response of the data carries ratings; the attribute model has nothing to learn from")
        with np.errstate(invalid="ignore"):
            present_A = (~np.isnan(table_RA)).sum(axis=0)
            self._means_A = np.where(present_A > 0, np.nansum(table_RA, axis=0) / np.maximum(present_A, 1), np.nan)

    def prepare(self, conversations: Sequence[Conversation]) -> dict[str, Any]:
        """Start the head as a ridge regression on the backbone as it came, so that training refines a fair judge."""
        if self.settings.head == "random":
            return {}
        trees = [self.tree(conversation, 0) for conversation in conversations]
        states, rated, groups = [], [], []
        with torch.no_grad():
            for pack in make_packs(trees, self.settings.context, self.settings.pack_tokens):
                states.append(score_states(self.model, Batch.of(pack, self.model.device)).double().cpu())
                rated.append(self._rated(pack, self._ratings))
                groups += [response.conversation for response in pack.responses]
        head = head_of(self.model.network)
        fits = start_ridge(head, torch.cat(states), torch.from_numpy(np.concatenate(rated)), groups)
        names = self.model.schema.names
        return {"ridge": {names[column]: asdict(fit) for column, fit in fits.items()}}

    def tree(self, conversation: Conversation, epoch: int) -> TokenTree:
        threads = conversation.threads_through
        weights = {
            index: (float(threads[index]) if self.settings.thread_weights else 1.0)
            if self.model.schema.known(conversation.messages[index].ratings)
            else 0.0
            for index in conversation.responses
        }
        return self.model.renderer.tree(conversation, "score", weights=weights)

    def _rated(self, pack: Pack, ratings: Ratings) -> NDArray[np.float64]:
        values = [ratings[response.conversation][response.message] for response in pack.responses]
        return rating_table(self.model.schema, values)

    def _response_weights(self, pack: Pack) -> NDArray[np.float32]:
        """Loss weight of each response, [R]: that of its tokens, which all agree."""
        weights_R = np.zeros(len(pack.responses), dtype=np.float32)
        weights_R[pack.owner_N] = pack.weights_N
        return weights_R

    def terms(self, packs: Sequence[Pack]) -> Mapping[str, Term]:
        weights_A = self._weights_A.cpu().numpy()
        count = sum(
            (~np.isnan(self._rated(pack, self._ratings)) * weights_A * self._response_weights(pack)[:, None]).sum()
            for pack in packs
        )
        return {"squared_error": Term(1.0, float(count))}

    def losses(self, batch: Batch) -> Mapping[str, LossSum]:
        predicted_RA = predict(self.model, batch)
        rated_RA = batch.tensor(self._rated(batch.pack, self._ratings)).float()
        weights_RA = self._weights_A * batch.tensor(self._response_weights(batch.pack))[:, None]
        return {"squared_error": masked_squared_error(predicted_RA, rated_RA, weights_RA)}

    @torch.no_grad()
    def validate(self, conversations: Sequence[Conversation]) -> dict[str, Any]:
        """Mean squared error, and per attribute the agreement with people beside that of the training mean."""
        ratings = ratings_of(conversations)
        trees = [self.tree(conversation, -1) for conversation in conversations]
        packs = make_packs(trees, self.settings.context, self.settings.pack_tokens)
        if not packs:
            raise DataError("no held-out response carries ratings; hold out more conversations")
        rated_RA = np.concatenate([self._rated(pack, ratings) for pack in packs])
        batches = (Batch.of(pack, self.model.device) for pack in packs)
        predicted_RA = np.concatenate([predict(self.model, batch).cpu().double().numpy() for batch in batches])
        squared_RA = np.square(predicted_RA - rated_RA)
        return {
            "loss": float(np.nanmean(squared_RA)),
            "baseline_loss": float(np.nanmean(np.square(self._means_A - rated_RA))),
            "attributes": agreement_by_attribute(self.model.schema, predicted_RA, rated_RA, self._means_A),
        }


def score_states(model: SteerModel, batch: Batch) -> Tensor:
    """Hidden states at the score positions, [R, D]."""
    states_1TD = hidden_states(model.network, **batch.inputs())
    return states_1TD[0, batch.tensor([response.score_at for response in batch.pack.responses])]


def predict(model: SteerModel, batch: Batch) -> Tensor:
    """Attribute scores of the responses of a pack, [R, A], in float32 whatever the backbone computes in."""
    states_RD = score_states(model, batch)
    with torch.autocast(states_RD.device.type, enabled=False):
        return head_of(model.network)(states_RD.float())  # type: ignore[no-any-return]


def ratings_of(conversations: Sequence[Conversation]) -> dict[str, tuple[Mapping[str, float], ...]]:
    """The human ratings of every message, by conversation."""
    return {c.id: tuple(message.ratings for message in c.messages) for c in conversations}


def rating_table(schema: Schema, values: Sequence[Mapping[str, float]]) -> NDArray[np.float64]:
    """[R, A] with NaN where a rating is missing."""
    return np.array([[row.get(name, np.nan) for name in schema.names] for row in values]).reshape(-1, len(schema))
