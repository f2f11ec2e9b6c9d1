"""The books of an import: all that was read is kept or left out for a reason, and both are counted."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

from steerlm.conversation import Conversation, Message
from steerlm.errors import DataError, SchemaError

Unit = Literal["records", "conversations", "messages", "ratings"]
_SHOWN_FAULTS = 20


@dataclass
class Report:
    """What an import read, kept and left out.

    For messages and for ratings `read == kept + joined + sum(left_out)` always holds; `joined` are those that were
    the same as one already there. `records` are lines or rows of the source; one that could not be understood counts
    as left out as a record, and its messages not as read.
    """

    kind: str
    sources: tuple[str, ...]
    skip_faulty: bool = False
    read: Counter[str] = field(default_factory=Counter)
    kept: Counter[str] = field(default_factory=Counter)
    joined: Counter[str] = field(default_factory=Counter)
    left_out: dict[Unit, Counter[str]] = field(default_factory=dict)
    faults: list[str] = field(default_factory=list)

    def leave_out(self, unit: Unit, reason: str, count: int = 1) -> None:
        if count:
            self.left_out.setdefault(unit, Counter())[reason] += count

    def leave_out_messages(self, reason: str, messages: Sequence[Message]) -> None:
        """Count messages as left out, and their ratings with them."""
        self.leave_out("messages", reason, len(messages))
        self.leave_out("ratings", "of messages left out", sum(len(message.ratings) for message in messages))

    def leave_out_conversation(self, reason: str, conversation: Conversation) -> None:
        """Count a whole conversation as left out, and its messages and ratings with it."""
        self.leave_out("conversations", reason)
        self.leave_out_messages("of conversations left out", conversation.messages)

    def keep(self, conversations: Sequence[Conversation]) -> None:
        """Count what goes out."""
        messages = [message for conversation in conversations for message in conversation.messages]
        responses = [message for message in messages if message.role == "assistant"]
        self.kept = Counter(
            conversations=len(conversations),
            messages=len(messages),
            responses=len(responses),
            rated_responses=sum(bool(message.ratings) for message in responses),
            ratings=sum(len(message.ratings) for message in messages),
        )

    @contextmanager
    def tolerating(self, unit: Unit) -> Iterator[None]:
        """Where faulty records are to be skipped, count the fault that ends the block; else let it pass.

        A `SchemaError` comes out as a `DataError`: at this point it is the data that is wrong.
        """
        try:
            yield
        except (DataError, SchemaError) as error:
            if not self.skip_faulty:
                raise DataError(str(error)) from error
            self.leave_out(unit, "faulty")
            if len(self.faults) < _SHOWN_FAULTS:
                self.faults.append(str(error))

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return {
            "kind": self.kind,
            "sources": list(self.sources),
            "read": _plain(self.read),
            "kept": _plain(self.kept),
            "joined": _plain(self.joined),
            "left_out": {unit: _plain(reasons) for unit, reasons in self.left_out.items()},
            "faults": list(self.faults),
        }

    def __str__(self) -> str:
        """One line a count, the largest reasons first."""
        lines = [
            f"read {_listed(self.read)}",
            f"kept {_listed(self.kept)}",
            *([f"joined {_listed(self.joined)} with equal ones"] if self.joined else []),
            *(
                f"left out {count} {unit}: {reason}"
                for unit, reasons in self.left_out.items()
                for reason, count in reasons.most_common()
            ),
        ]
        return "\n".join(lines + [f"faulty: {fault}" for fault in self.faults])


def _plain(counts: Mapping[str, int]) -> dict[str, int]:
    return {name: int(count) for name, count in counts.items()}


def _listed(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{count} {name.replace('_', ' ')}" for name, count in counts.items()) or "nothing"


@dataclass(frozen=True)
class Imported:
    """The conversations of an import, in the order of the source, and its books."""

    conversations: tuple[Conversation, ...]
    report: Report
