"""What a server is made of."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING

from steerlm.engines.base import Engine
from steerlm.server.admission import Admission
from steerlm.server.judge import Judge
from steerlm.server.limits import ServerLimits
from steerlm.server.policy import OperatorPolicy
from steerlm.server.rules import Rules
from steerlm.steering import require_same_scales

if TYPE_CHECKING:
    from steerlm.models.prompting import Prompting


@dataclass(frozen=True)
class ServerState:
    """All that the application answers from; it holds no state of its own beside it.

    prompting   the policy's description and renderer
    engine      what generates
    name        the name of the model that clients ask for
    policy      the operator's rules; raises `ConfigError` where they do not fit the model
    judge       what measures answers, where the server has an attribute model; raises `SchemaError` for scales other
                than the policy's
    limits      bounds of one request
    created     when the server began, seconds since 1970
    admission   who is answered now and who waits; without it, all at once
    scoring     the same for requests for scores
    """

    prompting: Prompting
    engine: Engine
    name: str
    policy: OperatorPolicy = field(default_factory=OperatorPolicy)
    judge: Judge | None = None
    limits: ServerLimits = field(default_factory=ServerLimits)
    created: int = 0
    admission: Admission | None = None
    scoring: Admission | None = None

    def __post_init__(self) -> None:
        self.rules.check_policy()
        if self.judge is not None:
            require_same_scales(self.prompting.schema, self.judge.schema)

    @property
    def most_answers(self) -> int:
        """Most answers of one request, which are all computed at the same time."""
        return min(self.limits.answers, self.admission.most_running) if self.admission else self.limits.answers

    @cached_property
    def rules(self) -> Rules:
        return Rules(self.prompting.schema, self.policy)
