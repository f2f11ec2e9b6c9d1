"""An engine that answers for a policy by a script, and what the evaluation of steering is tested with beside it."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

from steerlm.engines import Piece, Request
from steerlm.engines.base import Deliver
from steerlm.evaluation.steering_settings import SteeringSettings
from steerlm.models.load import SteerModel

PROMPTS = ["Why is the sea salty?", "Is it?", "What is rock?", "How do rivers carry it?", "And then?", "Why me?"]
QUICK = SteeringSettings(attributes=["verbosity"], conditions=["policy"], goals=0, perplexity=False, resamples=100)


class Scripted:
    """An engine that answers with one word for each point of verbosity that it believes to be asked for."""

    context = guided_context = 2048

    def __init__(self, model: SteerModel, believes: Callable[[int], int]) -> None:
        self.model, self.believes = model, believes
        self.answered = 0
        self.requests: list[Request] = []
        self.seeds: dict[tuple[int, ...], int] = {}

    def submit(self, requests: Sequence[Request], deliver: Deliver) -> Callable[[], None]:
        for number, request in enumerate(requests):
            deliver(Piece(number, 5, self.text(request), "stop"))
            self.answered += 1
            self.requests.append(request)
            self.seeds[request.prompt] = request.sampling.seed
        return lambda: None

    def text(self, request: Request) -> str:
        """What it answers."""
        return "Salt is in it. " * (1 + 3 * self.believes(self.asked(request, "verbosity")))

    def asked(self, request: Request, attribute: str) -> int:
        """The value in the label line."""
        return int(re.findall(rf"{attribute}:(\d)", self.model.renderer.tokenizer.decode(request.prompt))[-1])

    def close(self) -> None:
        raise AssertionError("an engine that was given is not ours to close")
