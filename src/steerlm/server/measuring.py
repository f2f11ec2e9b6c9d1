"""What the attribute model measures in answers, and the choice of the one nearest to what was asked."""

from __future__ import annotations

import math
from collections.abc import Sequence

from steerlm.conversation import Conversation, Message
from steerlm.server.dialogue import Dialogue
from steerlm.server.errors import ApiError
from steerlm.server.state import ServerState
from steerlm.server.steering import Steering, Verified
from steerlm.server.work import scored
from steerlm.steering import distance

Measured = dict[str, float] | None


async def measure(state: ServerState, dialogue: Dialogue, texts: Sequence[str]) -> list[Measured]:
    """Scores of answers to one conversation, which is read once, without its oldest turns where it is longer than the
    attribute model's context; None where an answer was too long to be read.

    The answers were generated, and are not thrown away because many wait to be measured.
    """
    assert state.judge is not None
    asked = dialogue.conversation
    answers = tuple(Message("assistant", text, len(asked.messages) - 1) for text in texts)
    tree = Conversation(asked.id, (*asked.messages, *answers), asked.system)
    numbers = range(len(asked.messages), len(tree.messages))
    [scores] = (await scored(state.judge, state.scoring, [tree], None, numbers)).scores
    return [scores.get(number) for number in numbers]


def compared(state: ServerState, steering: Steering) -> dict[str, int]:
    """The values with which answers are compared: of the attributes asked for, or else of all that are set."""
    assert state.judge is not None
    values = {
        name: value
        for name, value in steering.values.items()
        if value is not None and name in state.judge.schema and (not steering.asked or name in steering.asked)
    }
    if not values:
        raise ApiError(
            f"verified: the attribute model measures none of the attributes asked for, only "
            f"{', '.join(state.judge.schema.names)}",
            param="verified",
        )
    return values


def nearest(state: ServerState, steering: Steering, measured: Sequence[Measured]) -> Verified:
    """Which of the measured answers is nearest to what was asked; the first of equally near ones."""
    asked = compared(state, steering)
    found = [distance(state.prompting.schema, asked, item) for item in measured]
    shown = [round(gap, 4) if math.isfinite(gap) else None for gap in found]
    chosen = found.index(min(found))
    return Verified(drawn=len(found), chosen=chosen, attributes=list(asked), distance=shown[chosen], distances=shown)
