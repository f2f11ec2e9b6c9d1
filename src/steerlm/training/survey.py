"""What a training must know of its data before the first step, gathered while they are read the one time."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Self

from steerlm.conversation import Conversation, Message

_SAMPLE = 10_000
_SYSTEMS = 1_000


class Survey:
    """Counts over conversations, of a size that does not grow with them."""

    def __init__(self, seed: int = 0) -> None:
        self.conversations = 0
        self.responses = 0
        self.rated = 0
        self.predicted = 0
        self.labelled = 0
        """Responses with a rating, with a prediction, with either."""
        self.sums: Counter[str] = Counter()
        self.counts: Counter[str] = Counter()
        """Of the human ratings, by attribute."""
        self.predicted_names: set[str] = set()
        self.sample: list[Message] = []
        """Responses with ratings or predictions, each as likely to be here as any other, without their texts."""
        self._systems: Counter[str] = Counter()
        self._random = random.Random(f"survey-{seed}")

    @classmethod
    def of(cls, conversations: Iterable[Conversation], seed: int = 0) -> Self:
        survey = cls(seed)
        for conversation in conversations:
            survey.add(conversation)
        return survey

    def add(self, conversation: Conversation) -> None:
        self.conversations += 1
        # System texts beyond the first thousand are unlikely to become the commonest.
        if conversation.system in self._systems or len(self._systems) < _SYSTEMS:
            self._systems[conversation.system] += 1
        for index in conversation.responses:
            message = conversation.messages[index]
            self.responses += 1
            self.rated += bool(message.ratings)
            self.predicted += bool(message.predicted)
            self.sums.update(message.ratings)
            self.counts.update(message.ratings.keys())
            self.predicted_names.update(message.predicted)
            if message.ratings or message.predicted:
                self._draw(Message("assistant", "", None, message.ratings, message.predicted))

    def _draw(self, message: Message) -> None:
        """Reservoir sampling: every response so far is in the sample with the same probability."""
        self.labelled += 1
        if len(self.sample) < _SAMPLE:
            self.sample.append(message)
        elif (place := self._random.randrange(self.labelled)) < _SAMPLE:
            self.sample[place] = message

    @property
    def commonest_system(self) -> str:
        """The system text that most conversations have; of equally common ones the first."""
        return self._systems.most_common(1)[0][0] if self._systems else ""

    @property
    def mean_ratings(self) -> Mapping[str, float]:
        """The mean human rating of each attribute that has any."""
        return {name: self.sums[name] / count for name, count in self.counts.items()}
