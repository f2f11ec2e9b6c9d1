"""What the attribute model measures in answers, and the choice of the one nearest to what was asked."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from steerlm.conversation import Conversation, Message
from steerlm.server.dialogue import Dialogue
from steerlm.server.errors import ApiError
from steerlm.server.state import ServerState
from steerlm.server.steering import Steering, Verified

Measured = dict[str, float] | None


async def measure(state: ServerState, dialogue: Dialogue, texts: Sequence[str]) -> list[Measured]:
    """Scores of answers to one conversation, which is read once; None where it was too long to be read."""
    assert state.judge is not None
    asked = dialogue.conversation
    answers = tuple(Message("assistant", text, len(asked.messages) - 1) for text in texts)
    tree = Conversation(asked.id, (*asked.messages, *answers), asked.system)
    [scores] = await state.judge.score([tree])
    return [scores.get(len(asked.messages) + number) for number in range(len(texts))]


def compared(state: ServerState, steering: Steering) -> list[str]:
    """The attributes by which answers are compared with what was asked: those asked for, or else all that are set."""
    assert state.judge is not None
    names = [
        name
        for name, value in steering.values.items()
        if value is not None and name in state.judge.schema and (not steering.asked or name in steering.asked)
    ]
    if not names:
        raise ApiError(
            f"verified: the attribute model measures none of the attributes asked for, only "
            f"{', '.join(state.judge.schema.names)}",
            param="verified",
        )
    return names


def distance(state: ServerState, names: Sequence[str], values: Mapping[str, int | None], measured: Measured) -> float:
    """Mean of |measured - asked| over attributes, as a share of their scales; infinite where nothing was measured."""
    if measured is None:
        return float("inf")
    gaps = []
    for name in names:
        item, value = state.prompting.schema[name], values[name]
        assert value is not None
        gaps.append(abs(measured[name] - value) / (item.high - item.low))
    return sum(gaps) / len(gaps)


def nearest(state: ServerState, steering: Steering, measured: Sequence[Measured]) -> Verified:
    """Which of the measured answers is nearest to what was asked; the first of equally near ones."""
    names = compared(state, steering)
    found = [distance(state, names, steering.values, item) for item in measured]
    shown = [round(gap, 4) if gap != float("inf") else None for gap in found]
    chosen = min(range(len(found)), key=lambda number: found[number])
    return Verified(drawn=len(found), chosen=chosen, attributes=names, distance=shown[chosen], distances=shown)
