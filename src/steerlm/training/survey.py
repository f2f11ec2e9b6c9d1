"""What a training must know of its data before the first step, gathered while they are read the one time."""

from __future__ import annotations

import math
import random
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Self

from steerlm.conversation import Conversation, LabelsFrom, Message

_SAMPLE = 10_000
_SYSTEMS = 1_000
_NAMES = 1_000


@dataclass(slots=True)
class Moments:
    """Mean and standard deviation of numbers seen one by one."""

    count: int = 0
    total: float = 0.0
    squares: float = 0.0

    def add(self, value: float) -> None:
        self.count += 1
        self.total += value
        self.squares += value * value

    @property
    def mean(self) -> float:
        return self.total / self.count

    @property
    def deviation(self) -> float:
        return math.sqrt(max(0.0, self.squares / self.count - self.mean**2))


def _note(names: set[str], name: str | None) -> None:
    if name and len(names) < _NAMES:
        names.add(name)


class Survey:
    """Counts over conversations, of a size that does not grow with them."""

    def __init__(self, seed: int = 0, labels: LabelsFrom = "predicted") -> None:
        self.labels = labels
        """Whose values are learnt from."""
        self.conversations = 0
        self.responses = 0
        self.rated = 0
        self.predicted = 0
        self.labelled = 0
        """Responses with a rating, with a prediction, with either."""
        self.ratings: defaultdict[str, Moments] = defaultdict(Moments)
        self.predictions: defaultdict[str, Moments] = defaultdict(Moments)
        """By attribute."""
        self.paired: defaultdict[str, tuple[Moments, Moments]] = defaultdict(lambda: (Moments(), Moments()))
        """Ratings and predictions of the responses that have both, by attribute."""
        self.annotators: set[str] = set()
        """Fingerprints of the attribute models whose predictions are learnt from, the first thousand."""
        self.unnamed = 0
        """Responses with such predictions that do not say whose they are."""
        self.sources: set[str] = set()
        """What the conversations say that they come from, the first thousand."""
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
        _note(self.sources, conversation.source)
        # System texts beyond the first thousand are unlikely to become the commonest.
        if conversation.system in self._systems or len(self._systems) < _SYSTEMS:
            self._systems[conversation.system] += 1
        for index in conversation.responses:
            message = conversation.messages[index]
            self.responses += 1
            self.rated += bool(message.ratings)
            self.predicted += bool(message.predicted)
            # A rating takes the place of a prediction, unless those alone are learnt from.
            by_people = message.ratings.keys() if self.labels != "predicted" else set()
            if message.labels(self.labels).keys() - by_people:
                _note(self.annotators, message.predicted_by)
                self.unnamed += not message.predicted_by
            for values, moments in ((message.ratings, self.ratings), (message.predicted, self.predictions)):
                for name, value in values.items():
                    moments[name].add(value)
            for name in message.ratings.keys() & message.predicted.keys():
                rated, predicted = self.paired[name]
                rated.add(message.ratings[name])
                predicted.add(message.predicted[name])
            if message.ratings or message.predicted:
                self._draw(Message("assistant", "", None, message.ratings, message.predicted))

    def _draw(self, message: Message) -> None:
        """Reservoir sampling: every response so far is in the sample with the same probability."""
        self.labelled += 1
        if len(self.sample) < _SAMPLE:
            self.sample.append(message)
        elif (place := self._random.randrange(self.labelled)) < _SAMPLE:
            self.sample[place] = message

    def annotators_after(self, before: Iterable[str] | None) -> list[str] | None:
        """Those and the ones `before`, whose predictions the base was made from; None where not all are known."""
        return None if before is None or self.unnamed else sorted({*before, *self.annotators})

    @property
    def commonest_system(self) -> str:
        """The system text that most conversations have; of equally common ones the first."""
        return self._systems.most_common(1)[0][0] if self._systems else ""

    @property
    def mean_ratings(self) -> Mapping[str, float]:
        """The mean human rating of each attribute that has any."""
        return {name: moments.mean for name, moments in self.ratings.items()}
