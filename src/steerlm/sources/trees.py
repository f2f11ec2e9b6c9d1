"""Making trees: threads that begin alike become one conversation, and branches are taken off trees."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

from steerlm.conversation import Conversation, Message, Role
from steerlm.sources.report import Report

_ROLES: dict[str, Role] = {"User": "user", "Assistant": "assistant"}
# The label line may follow an embedded assistant marker, as it does in NeMo's rendered text.
_TURN_START = re.compile(r"\n<extra_id_1>(User|Assistant)\n(?:<extra_id_2>([^\n]*)\n)?")


@dataclass(frozen=True, slots=True)
class Turn:
    """One turn of a thread, before it has a place in a tree. `label` is an unread label line, where there is one."""

    role: Role
    text: str
    ratings: Mapping[str, float] = field(default_factory=dict)
    label: str | None = None


def split_turns(text: str, role: Role) -> list[Turn]:
    """The turns of a text that may hold several, set apart by NeMo's markers; the first one is `role`'s.

    HelpSteer2's prompts and NeMo's chat records hold such texts: `hi<newline><extra_id_1>Assistant<newline>hello`.
    """
    first, *rest = _TURN_START.split(text)
    turns = [Turn(role, first)]
    for at in range(0, len(rest), 3):
        turns.append(Turn(_ROLES[rest[at]], rest[at + 2], label=rest[at + 1]))
    return turns


@dataclass(slots=True)
class _Node:
    turn: Turn
    parent: int | None
    ends_record: bool
    children: dict[tuple[Role, str], list[int]] = field(default_factory=dict)


@dataclass(slots=True)
class _Tree:
    id: str
    system: str
    source: str
    nodes: list[_Node] = field(default_factory=list)
    roots: dict[tuple[Role, str], list[int]] = field(default_factory=dict)

    def below(self, parent: int | None) -> dict[tuple[Role, str], list[int]]:
        """The turns that follow a node, or that open the conversation."""
        return self.roots if parent is None else self.nodes[parent].children


class Forest:
    """Joins threads with the same system text and first turn into one tree, where each shared turn is once.

    The id of a tree is a digest of that beginning, so it depends neither on the order of the records nor on the
    rest of the file. Turns are the same where role and text are, and their ratings do not differ. With
    `keep_repeats` the last turn of each record stays a message of its own even when another record ends alike:
    a response that was sampled or rated twice counts twice.
    """

    def __init__(self, kind: str, report: Report, keep_repeats: bool) -> None:
        self._kind = kind
        self._report = report
        self._keep_repeats = keep_repeats
        self._trees: dict[str, _Tree] = {}

    def add(self, system: str, turns: Sequence[Turn], source: str | None = None) -> None:
        """Add a thread of at least one turn. Counts its messages and ratings as read."""
        self._report.read["messages"] += len(turns)
        self._report.read["ratings"] += sum(len(turn.ratings) for turn in turns)
        beginning = json.dumps([system, turns[0].role, turns[0].text])
        name = f"{self._kind}-{hashlib.sha256(beginning.encode()).hexdigest()[:16]}"
        tree = self._trees.setdefault(name, _Tree(name, system, source or self._kind))
        at: int | None = None
        for number, turn in enumerate(turns, start=1):
            at = self._place(tree, at, turn, number == len(turns))

    def _place(self, tree: _Tree, parent: int | None, turn: Turn, last: bool) -> int:
        """The node of `turn` below `parent`: one that is there already, or a new one."""
        key = (turn.role, turn.text)
        for index in tree.below(parent).get(key, ()):
            node = tree.nodes[index]
            if self._keep_repeats and last and node.ends_record:
                continue
            if node.turn.ratings and turn.ratings and node.turn.ratings != turn.ratings:
                continue
            self._report.joined["messages"] += 1
            if node.turn.ratings and turn.ratings:
                self._report.joined["ratings"] += len(turn.ratings)
            elif turn.ratings:
                node.turn = turn
            node.ends_record |= last
            return index
        index = len(tree.nodes)
        tree.nodes.append(_Node(turn, parent, last))
        tree.below(parent).setdefault(key, []).append(index)
        return index

    def conversations(self) -> Iterator[Conversation]:
        """The trees in the order in which they began, each depth first."""
        for tree in self._trees.values():
            children: dict[int | None, list[int]] = {}
            for index, node in enumerate(tree.nodes):
                children.setdefault(node.parent, []).append(index)
            messages: list[Message] = []
            stack: list[tuple[int, int | None]] = [(index, None) for index in reversed(children[None])]
            while stack:
                index, parent = stack.pop()
                turn = tree.nodes[index].turn
                stack += [(child, len(messages)) for child in reversed(children.get(index, []))]
                messages.append(Message(turn.role, turn.text, parent, dict(turn.ratings)))
            yield Conversation(tree.id, tuple(messages), tree.system, tree.source)


def without(conversation: Conversation, reasons: Mapping[int, str], report: Report) -> Conversation | None:
    """The conversation without the messages in `reasons` and all below them, each counted under its reason.

    None where that leaves no message at all, or where there were responses and none is left.
    """
    if not reasons:
        return conversation
    place: dict[int, int] = {}
    kept: list[Message] = []
    for index, message in enumerate(conversation.messages):
        below = message.parent is not None and message.parent not in place
        if below or index in reasons:
            report.leave_out_messages("below a message left out" if below else reasons[index], [message])
            continue
        place[index] = len(kept)
        kept.append(replace(message, parent=None if message.parent is None else place[message.parent]))
    if kept and (not conversation.responses or any(message.role == "assistant" for message in kept)):
        return replace(conversation, messages=tuple(kept))
    report.leave_out("conversations", "no response left")
    report.leave_out_messages("of conversations left out", kept)
    return None
