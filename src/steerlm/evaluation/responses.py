"""Rated responses as columns: what people said of each, and where it comes from. Shapes: R responses, A attributes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from steerlm.attributes import Schema
from steerlm.conversation import Conversation
from steerlm.training.attribute_model import rating_table

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class RatedResponses:
    """Responses with at least one human rating of an attribute of `schema`.

    places           index of the conversation and of the message of each
    conversation_R   number of the conversation: what is drawn for intervals
    prompt_R         what tells the prompts apart: responses to the same one can be ranked
    source_R         where the conversation comes from
    rated_RA         human ratings, NaN where there is none
    texts, prompts   the response, and the message before it
    """

    schema: Schema
    places: tuple[tuple[int, int], ...]
    conversation_R: NDArray[np.int64]
    prompt_R: NDArray[np.str_]
    source_R: NDArray[np.str_]
    rated_RA: Floats
    texts: tuple[str, ...]
    prompts: tuple[str, ...]

    def only(self, kept_R: NDArray[np.bool_]) -> RatedResponses:
        """Some of them."""
        chosen = np.flatnonzero(kept_R)
        return replace(
            self,
            places=tuple(self.places[index] for index in chosen),
            conversation_R=self.conversation_R[chosen],
            prompt_R=self.prompt_R[chosen],
            source_R=self.source_R[chosen],
            rated_RA=self.rated_RA[chosen],
            texts=tuple(self.texts[index] for index in chosen),
            prompts=tuple(self.prompts[index] for index in chosen),
        )

    def __len__(self) -> int:
        return len(self.places)


def rated_responses(conversations: Sequence[Conversation], schema: Schema) -> RatedResponses:
    """The rated responses of conversations, in their order."""
    places = tuple(
        (number, index)
        for number, conversation in enumerate(conversations)
        for index in conversation.responses
        if schema.known(conversation.messages[index].ratings)
    )
    messages = [conversations[number].messages[index] for number, index in places]
    parents = [message.parent for message in messages]
    return RatedResponses(
        schema=schema,
        places=places,
        conversation_R=np.array([number for number, _ in places], dtype=np.int64),
        prompt_R=np.array([f"{number}:{parent}" for (number, _), parent in zip(places, parents, strict=True)]),
        source_R=np.array([conversations[number].source or "unnamed" for number, _ in places]),
        rated_RA=rating_table(schema, [message.ratings for message in messages]),
        texts=tuple(message.text for message in messages),
        prompts=tuple(
            conversations[number].messages[parent].text if parent is not None else ""
            for (number, _), parent in zip(places, parents, strict=True)
        ),
    )
