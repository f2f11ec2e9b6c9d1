"""Rated responses as columns: what people said of each, and where it comes from. Shapes: R responses, A attributes."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from steerlm.attributes import Schema
from steerlm.conversation import Conversation
from steerlm.training.attribute_model import rating_table

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class RatedResponses:
    """Responses with at least one human rating of an attribute of `schema`.

    places           index of the conversation and of the message of each
    conversation_R   number of the conversation
    group_R          what is drawn for intervals: a conversation, and with it all that share a prompt with it
    prompt_R         number of the prompt, by its system text and path: responses to the same one can be ranked
    source_R         where the conversation comes from
    rated_RA         human ratings, NaN where there is none
    texts, prompts   the response, and the message before it
    """

    schema: Schema
    places: tuple[tuple[int, int], ...]
    conversation_R: NDArray[np.int64]
    group_R: NDArray[np.int64]
    prompt_R: NDArray[np.int64]
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
            group_R=self.group_R[chosen],
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
    conversation_R = np.array([number for number, _ in places], dtype=np.int64)
    known: dict[Hashable, int] = {}
    keys = (_prompt(conversations[number], index, number) for number, index in places)
    prompt_R = np.array([known.setdefault(key, len(known)) for key in keys], dtype=np.int64)
    return RatedResponses(
        schema=schema,
        places=places,
        conversation_R=conversation_R,
        group_R=_groups(conversation_R, prompt_R),
        prompt_R=prompt_R,
        source_R=np.array([conversations[number].source or "unnamed" for number, _ in places]),
        rated_RA=rating_table(schema, [message.ratings for message in messages]),
        texts=tuple(message.text for message in messages),
        prompts=tuple(
            conversations[number].messages[parent].text if parent is not None else ""
            for (number, _), parent in zip(places, parents, strict=True)
        ),
    )


def _prompt(conversation: Conversation, index: int, number: int) -> Hashable:
    """What a response answers; one that opens its conversation answers nothing that another one could share."""
    path = conversation.path(index)[:-1]
    if not path:
        return number
    return conversation.system, *((conversation.messages[k].role, conversation.messages[k].text) for k in path)


def _groups(conversation_R: NDArray[np.int64], prompt_R: NDArray[np.int64]) -> NDArray[np.int64]:
    """The numbers of what is independent: conversations that are tied by no prompt, directly or through others."""
    if not len(prompt_R):
        return conversation_R
    first = int(conversation_R.max()) + 1
    size = first + int(prompt_R.max()) + 1
    ties = coo_array((np.ones(len(prompt_R)), (conversation_R, first + prompt_R)), shape=(size, size))
    _, group = connected_components(ties, directed=False)
    return np.asarray(group[conversation_R], dtype=np.int64)
