"""Training of the attribute model: a regression of human ratings, read at the end of each response
(arXiv 2311.09528, section 4.4). Shapes: R responses, A attributes, D hidden.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from steerlm.attributes import Schema
from steerlm.conversation import Conversation
from steerlm.errors import DataError
from steerlm.losses import LossSum, masked_squared_error
from steerlm.models.load import SteerModel, head_of, hidden_states
from steerlm.packing import Pack
from steerlm.parallel.local import write_whole
from steerlm.tokens import TokenTree
from steerlm.training.config import AttributeSettings
from steerlm.training.metrics import agreement_by_attribute
from steerlm.training.ridge import RidgeFit, start_ridge
from steerlm.training.survey import Survey
from steerlm.training.task import Batch, OnMain, Passes, Term

# A ridge regression on more conversations than this gets better by little, and holds all their states in memory.
_RIDGE_CONVERSATIONS = 5_000


@dataclass
class AttributeTask:
    """See `steerlm.training.task.Task`."""

    model: SteerModel
    settings: AttributeSettings
    higher_is_better: bool = False

    def __post_init__(self) -> None:
        self.best_by: str | None = self.settings.best_by
        schema = self.model.schema
        schema_weights = dict.fromkeys(schema.names, 1.0)
        for name, weight in self.settings.loss_weights.items():
            schema_weights[schema[name].name] = weight
        self._weights_A = torch.tensor([schema_weights[name] for name in schema.names], device=self.model.device)
        self._means_A: NDArray[np.float64] = np.full(len(schema), np.nan)

    def remember(self, survey: Survey) -> None:
        """Keep the mean ratings of the data, the baseline that the model has to beat."""
        if not survey.rated:
            raise DataError("no response of the data carries ratings; the attribute model has nothing to learn from")
        (self._means_A,) = rating_table(self.model.schema, [survey.mean_ratings])

    def prepare(
        self, conversations: Sequence[Conversation], passes: Passes[Any], on_main: OnMain[Any]
    ) -> dict[str, Any]:
        """Start the head as a ridge regression on the backbone as it came, so that training refines a fair judge."""
        if self.settings.head == "random":
            return {}
        seen = passes(islice(self._rated_trees(conversations), _RIDGE_CONVERSATIONS), self._states)
        if not seen:
            raise DataError("all rated responses are longer than the context; raise context and pack_tokens")
        states, rated, groups = zip(*seen, strict=True)
        names = [name for pack in groups for name in pack]
        head = head_of(self.model.network)

        def fit() -> tuple[Tensor, dict[int, RidgeFit]]:
            fitted = nn.Linear(head.in_features, head.out_features, bias=False)
            fits = start_ridge(fitted, torch.cat(states), torch.from_numpy(np.concatenate(rated)), names)
            return fitted.weight.detach(), fits

        weight_AD, fits = on_main(fit)
        write_whole(head.weight, weight_AD.to(self.model.device))
        return {"ridge": {self.model.schema.names[column]: asdict(chosen) for column, chosen in fits.items()}}

    def _rated_trees(self, conversations: Sequence[Conversation]) -> Iterator[TokenTree]:
        """Of the conversations with ratings, in random order."""
        for index in np.random.default_rng(self.settings.seed).permutation(len(conversations)):
            tree = self.tree(conversations[int(index)], 0)
            if tree.active:
                yield tree

    def _states(self, batch: Batch) -> tuple[Tensor, NDArray[np.float64], list[str]]:
        names = [response.conversation for response in batch.pack.responses]
        return score_states(self.model, batch).double().cpu(), self._rated(batch.pack), names

    def tree(self, conversation: Conversation, epoch: int) -> TokenTree:
        threads = conversation.threads_through
        weights = {
            index: (float(threads[index]) if self.settings.thread_weights else 1.0)
            if self.model.schema.known(conversation.messages[index].ratings)
            else 0.0
            for index in conversation.responses
        }
        return self.model.renderer.tree(conversation, "score", weights=weights)

    def held_out_tree(self, conversation: Conversation) -> TokenTree:
        return self.tree(conversation, -1)

    def _rated(self, pack: Pack) -> NDArray[np.float64]:
        return rating_table(self.model.schema, [response.ratings for response in pack.responses])

    def _response_weights(self, pack: Pack) -> NDArray[np.float32]:
        """Loss weight of each response, [R]: that of its tokens, which all agree."""
        weights_R = np.zeros(len(pack.responses), dtype=np.float32)
        weights_R[pack.owner_N] = pack.weights_N
        return weights_R

    def terms(self, packs: Sequence[Pack]) -> Mapping[str, Term]:
        weights_A = self._weights_A.cpu().numpy()
        count = sum(
            (~np.isnan(self._rated(pack)) * weights_A * self._response_weights(pack)[:, None]).sum() for pack in packs
        )
        return {"squared_error": Term(1.0, float(count))}

    def losses(self, batch: Batch) -> Mapping[str, LossSum]:
        predicted_RA = predict(self.model, batch)
        rated_RA = batch.tensor(self._rated(batch.pack)).float()
        weights_RA = self._weights_A * batch.tensor(self._response_weights(batch.pack))[:, None]
        return {"squared_error": masked_squared_error(predicted_RA, rated_RA, weights_RA)}

    def measure(self, batch: Batch) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Predicted and human values, [R, A]."""
        return predict(self.model, batch).cpu().double().numpy(), self._rated(batch.pack)

    def figures(self, measured: Sequence[tuple[NDArray[np.float64], NDArray[np.float64]]]) -> dict[str, Any]:
        """Mean squared error, and per attribute the agreement with people beside that of the training mean."""
        if not measured:
            raise DataError(
                f"no held-out response carries ratings, or all that do are beyond context={self.settings.context}; "
                "hold out more conversations, or raise context"
            )
        predicted_RA, rated_RA = (np.concatenate(tables) for tables in zip(*measured, strict=True))
        return {
            "loss": float(np.nanmean(np.square(predicted_RA - rated_RA))),
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


def rating_table(schema: Schema, values: Sequence[Mapping[str, float]]) -> NDArray[np.float64]:
    """[R, A] with NaN where a rating is missing."""
    return np.array([[row.get(name, np.nan) for name in schema.names] for row in values]).reshape(-1, len(schema))
