"""Preference data: of two responses to one prompt, the one that people prefer.

Read are HelpSteer2-Preference (prompt, response_1, response_2, preference_strength) and the layout of RewardBench
(prompt, chosen, rejected, subset).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from steerlm.conversation import Conversation, Message
from steerlm.dialects import NEMO_SYSTEM
from steerlm.errors import DataError
from steerlm.files import read_records
from steerlm.sources.records import Record, kind_of
from steerlm.sources.trees import Turn, split_turns

SCALAR_WEIGHTS: Mapping[str, float] = {
    "helpfulness": 0.65,
    "correctness": 0.8,
    "coherence": 0.45,
    "complexity": 0.55,
    "verbosity": -0.4,
}
"""How Llama3-70B-SteerLM-RM's card adds attributes up to one figure."""
_ROLES = {"user": "user", "human": "user", "assistant": "assistant", "gpt": "assistant"}


@dataclass(frozen=True, slots=True)
class Preference:
    """A conversation whose last two messages answer the one before them: the preferred response comes first."""

    conversation: Conversation
    subset: str

    @property
    def pair(self) -> tuple[int, int]:
        """Indices of the preferred and of the other message."""
        last = len(self.conversation.messages) - 1
        return last - 1, last


@dataclass(frozen=True)
class Preferences:
    """Of a file: the pairs, and how many rows prefer neither response and are left out."""

    pairs: tuple[Preference, ...]
    ties: int


def is_preference_file(path: str | Path) -> bool:
    """Whether the first record compares two responses."""
    first = next(read_records(path), None)
    keys = set(first[1]) if first else set()
    return keys >= {"prompt", "chosen", "rejected"} or keys >= {"prompt", "response_1", "response_2"}


def read_preferences(path: str | Path) -> Preferences:
    """Read a file (JSONL, compressed or not, or Parquet). Raises `DataError` with the line of a faulty record."""
    pairs: list[Preference] = []
    ties = 0
    for line, data in read_records(path):
        record = Record(f"{path}: line {line}", data)
        if "chosen" in data:
            better, worse = _response(record, "chosen"), _response(record, "rejected")
        else:
            strength = _strength(record)
            if strength == 0:
                ties += 1
                continue
            order = ("response_2", "response_1") if strength > 0 else ("response_1", "response_2")
            better, worse = (_response(record, key) for key in order)
        pairs.append(Preference(_conversation(record, str(line), better, worse), str(data.get("subset") or "unnamed")))
    if not pairs:
        raise DataError(f"{path}: no row prefers one of its responses")
    return Preferences(tuple(pairs), ties)


def _strength(record: Record) -> float:
    value = record.data.get("preference_strength")
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise record.fault(
            f"preference_strength must be a number from -3 (response_1 is much better) to 3, found {kind_of(value)}"
        )
    return value


def _response(record: Record, key: str) -> str:
    """A response: a string, or the last of a list of messages."""
    value = record.data.get(key)
    if isinstance(value, list):
        turns = _turns(record, key, value)
        if not turns or turns[-1].role != "assistant":
            raise record.fault(f"{key} must end with a message of the assistant")
        return turns[-1].text
    return record.text(key)


def _conversation(record: Record, name: str, better: str, worse: str) -> Conversation:
    prompt = record.data.get("prompt")
    if isinstance(prompt, list):
        turns, system = _turns(record, "prompt", prompt), _system(prompt)
    else:
        turns, system = split_turns(record.text("prompt"), "user"), NEMO_SYSTEM
    if not turns or turns[-1].role != "user":
        raise record.fault("the prompt must end with a turn of the user")
    messages = [Message(turn.role, turn.text, k - 1 if k else None) for k, turn in enumerate(turns)]
    messages += [Message("assistant", text, len(turns) - 1) for text in (better, worse)]
    return Conversation(name, tuple(messages), system)


def _turns(record: Record, key: str, items: Sequence[Any]) -> list[Turn]:
    turns = []
    for number, item in enumerate(items):
        part = record.part(f"{key}, message {number}", item)
        role = part.text("role")
        if role == "system" and number == 0:
            continue
        if role not in _ROLES:
            raise part.fault(f"role={role!r} must be user or assistant")
        turns.append(Turn("user" if _ROLES[role] == "user" else "assistant", part.text("content")))
    return turns


def _system(items: Sequence[Any]) -> str:
    return str(items[0]["content"]) if items and items[0]["role"] == "system" else NEMO_SYSTEM
