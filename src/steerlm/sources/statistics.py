"""What is in a set of conversations: counts, ratings, correlations and lengths, as plain numbers.

Shapes: A attributes, R rated responses, N values.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from steerlm.attributes import STEERLM, Schema
from steerlm.conversation import Conversation
from steerlm.dialects import Renderer
from steerlm.tokens import TokenTree
from steerlm.training.metrics import pearson

ValuesFrom = Literal["ratings", "predicted"]
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Lengths:
    """A distribution of lengths. Quantiles are linearly interpolated; all are 0 where there is nothing."""

    count: int
    total: int
    mean: float
    median: float
    p90: float
    longest: int

    @classmethod
    def of(cls, lengths: Sequence[int]) -> Lengths:
        if not lengths:
            return cls(0, 0, 0.0, 0.0, 0.0, 0)
        values_N = np.asarray(lengths, dtype=np.float64)
        median, p90 = (float(value) for value in np.quantile(values_N, [0.5, 0.9]))
        return cls(len(lengths), sum(lengths), float(values_N.mean()), median, p90, max(lengths))


@dataclass(frozen=True)
class AttributeStatistics:
    """Values of one attribute over the responses that have it.

    count      number of responses
    mean       on the attribute's own scale; None where there are none
    sd         sample standard deviation (divided by count - 1); None below two responses
    histogram  number of responses a level, as a label line would round them
    """

    count: int
    mean: float | None
    sd: float | None
    histogram: dict[int, int]


@dataclass(frozen=True)
class TokenStatistics:
    """Lengths in tokens of one tokenizer and dialect.

    prompts, responses  tokens of the messages' own text with the newline that may close it, no markers, no labels
    longest_path        tokens from the root to the end of the longest thread: the context that it takes
    tree                tokens with every message once, rendered for the policy with label lines
    threads             tokens of all root-to-leaf threads, each written out
    score_tree          tokens with every message once, rendered for scoring
    requests            tokens of one request for each response with all that precedes it, as annotators send
    """

    dialect: str
    prompts: Lengths
    responses: Lengths
    longest_path: int
    tree: int
    threads: int
    score_tree: int
    requests: int

    @property
    def threads_to_tree(self) -> float:
        """How many times more tokens training on flattened threads takes."""
        return self.threads / self.tree if self.tree else 1.0

    @property
    def requests_to_tree(self) -> float:
        """How many times more tokens scoring response by response takes."""
        return self.requests / self.score_tree if self.score_tree else 1.0

    def to_dict(self) -> dict[str, Any]:
        ratios = {"threads_to_tree": self.threads_to_tree, "requests_to_tree": self.requests_to_tree}
        return {**asdict(self), **ratios}


@dataclass(frozen=True)
class Statistics:
    """See the fields; `correlations[a][b]` is `pearson` over the responses that have both, None where undefined."""

    conversations: int
    messages: int
    responses: int
    labelled_responses: int
    threads: int
    most_responses_to_a_prompt: int
    values_from: ValuesFrom
    attributes: dict[str, AttributeStatistics]
    correlations: dict[str, dict[str, float | None]]
    prompt_characters: Lengths
    response_characters: Lengths
    sources: dict[str, int] = field(default_factory=dict)
    tokens: TokenStatistics | None = None

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON; histogram keys become strings there."""
        return {**asdict(self), "tokens": self.tokens.to_dict() if self.tokens else None}


def statistics(
    conversations: Iterable[Conversation],
    schema: Schema = STEERLM,
    renderer: Renderer | None = None,
    values_from: ValuesFrom = "ratings",
) -> Statistics:
    """Describe conversations in one pass; with a renderer also in tokens.

    Raises `SchemaError` where a conversation has an attribute that the schema lacks.
    """
    gathered = _Gathered(schema, values_from)
    counted = _Tokens(renderer, values_from) if renderer is not None else None
    for conversation in conversations:
        gathered.add(conversation)
        if counted is not None:
            counted.add(conversation)
    return gathered.result(counted.result() if counted is not None else None)


@dataclass
class _Gathered:
    schema: Schema
    values_from: ValuesFrom
    conversations: int = 0
    threads: int = 0
    most_responses: int = 0
    sources: dict[str, int] = field(default_factory=dict)
    prompts: list[int] = field(default_factory=list)
    responses: list[int] = field(default_factory=list)
    rows: list[list[float]] = field(default_factory=list)

    def add(self, conversation: Conversation) -> None:
        self.conversations += 1
        self.sources[conversation.source] = self.sources.get(conversation.source, 0) + 1
        for index, message in enumerate(conversation.messages):
            below = conversation.children[index]
            self.threads += not below
            if message.role == "user":
                self.prompts.append(len(message.text))
                answers = sum(conversation.messages[child].role == "assistant" for child in below)
                self.most_responses = max(self.most_responses, answers)
                continue
            self.responses.append(len(message.text))
            values = getattr(message, self.values_from)
            if values:
                self.schema.label_line(values)  # raises SchemaError where the schema lacks an attribute
                self.rows.append([values.get(name, math.nan) for name in self.schema.names])

    def result(self, tokens: TokenStatistics | None) -> Statistics:
        values_RA = np.asarray(self.rows, dtype=np.float64).reshape(len(self.rows), len(self.schema))
        names = self.schema.names
        return Statistics(
            conversations=self.conversations,
            messages=len(self.prompts) + len(self.responses),
            responses=len(self.responses),
            labelled_responses=len(self.rows),
            threads=self.threads,
            most_responses_to_a_prompt=self.most_responses,
            values_from=self.values_from,
            attributes={
                attribute.name: _describe(values_RA[:, column], attribute.level, attribute.levels)
                for column, attribute in enumerate(self.schema)
            },
            correlations={
                a: {b: _correlation(values_RA[:, i], values_RA[:, j]) for j, b in enumerate(names)}
                for i, a in enumerate(names)
            },
            prompt_characters=Lengths.of(self.prompts),
            response_characters=Lengths.of(self.responses),
            sources=self.sources,
            tokens=tokens,
        )


def _describe(values_R: Floats, level: Callable[[float], int], levels: range) -> AttributeStatistics:
    values_N = values_R[~np.isnan(values_R)]
    histogram = dict.fromkeys(levels, 0)
    for value in values_N:
        histogram[level(float(value))] += 1
    count = len(values_N)
    return AttributeStatistics(
        count=count,
        mean=float(values_N.mean()) if count else None,
        sd=float(values_N.std(ddof=1)) if count > 1 else None,
        histogram=histogram,
    )


def _correlation(a_R: Floats, b_R: Floats) -> float | None:
    """Over the rows that have both values."""
    both = ~(np.isnan(a_R) | np.isnan(b_R))
    found = pearson(a_R[both], b_R[both])
    return None if math.isnan(found) else found


@dataclass
class _Tokens:
    renderer: Renderer
    values_from: ValuesFrom
    prompts: list[int] = field(default_factory=list)
    responses: list[int] = field(default_factory=list)
    longest: int = 0
    tree: int = 0
    threads: int = 0
    score_tree: int = 0
    requests: int = 0

    def add(self, conversation: Conversation) -> None:
        labels = {index: getattr(conversation.messages[index], self.values_from) for index in conversation.responses}
        policy = self.renderer.tree(conversation, "policy", labels)
        lengths = _path_lengths(policy)
        parents = {segment.parent for segment in policy.segments}
        leaves = [index for index in range(len(policy.segments)) if index not in parents]
        self.tree += policy.size
        self.threads += sum(lengths[index] for index in leaves)
        self.longest = max([self.longest, *lengths])
        score = self.renderer.tree(conversation, "score")
        self.score_tree += score.size
        lengths = _path_lengths(score)
        self.requests += sum(lengths[index] for index in score.active)
        for segment in score.segments:
            if segment.message < 0:
                continue
            role = "response" if segment.is_response else "user"
            own = sum(span.length for span in segment.spans if span.role == role)
            (self.responses if segment.is_response else self.prompts).append(own)

    def result(self) -> TokenStatistics:
        return TokenStatistics(
            dialect=self.renderer.dialect.name,
            prompts=Lengths.of(self.prompts),
            responses=Lengths.of(self.responses),
            longest_path=self.longest,
            tree=self.tree,
            threads=self.threads,
            score_tree=self.score_tree,
            requests=self.requests,
        )


def _path_lengths(tree: TokenTree) -> list[int]:
    """For each segment the tokens from the root through it, its own leaf included."""
    shared: list[int] = []
    lengths: list[int] = []
    for segment in tree.segments:
        before = shared[segment.parent] if segment.parent >= 0 else 0
        lengths.append(before + len(segment.ids))
        shared.append(before + segment.shared)
    return lengths
