"""Open Assistant 1 and 2, as flat messages (the hub's data sets) or as nested trees (`*.trees.jsonl.gz`).

Ratings are the mean labels that people gave, 0..1, stretched to each attribute's scale. The SteerLM recipe takes
quality, toxicity, humor and creativity and writes `round(value * 4)`; we keep `value * 4` as it is, and label lines
round it the same way. Open Assistant's own `helpfulness` is another quantity than HelpSteer's; name it among the
attributes to take it all the same.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace

from steerlm.attributes import Schema
from steerlm.conversation import Conversation, Message, Role
from steerlm.dialects import NEMO_SYSTEM
from steerlm.errors import DataError
from steerlm.sources.options import ImportOptions
from steerlm.sources.records import Record, kind_of, read_sources
from steerlm.sources.report import Report
from steerlm.sources.trees import without

RECIPE_ATTRIBUTES = ("quality", "toxicity", "humor", "creativity")
_ROLES: dict[str, Role] = {"prompter": "user", "assistant": "assistant"}


@dataclass(slots=True)
class _Node:
    """A message with its place in the file; `reason` says why it is to be left out, if it is."""

    id: str
    parent: str | None
    tree: str
    message: Message
    reason: str | None
    where: str
    children: list[_Node] = field(default_factory=list)


@dataclass(frozen=True)
class _Reader:
    options: ImportOptions
    schema: Schema
    report: Report
    wanted: tuple[str, ...]

    def node(self, record: Record, parent: object, tree: str | None) -> _Node:
        name = record.text("message_id")
        record = Record(f"{record.where}: message {name}", record.data)
        if parent is not None and not isinstance(parent, str):
            raise record.fault(f"parent_id must be a string or null, found {kind_of(parent)}")
        role = record.text("role")
        if role not in _ROLES:
            raise record.fault(f"role={role!r} must be prompter or assistant")
        text = record.text("text")
        reason = self._reason(record)
        ratings = self._ratings(record, _ROLES[role])
        tree = record.optional_text("message_tree_id") or tree or name
        return _Node(name, parent, tree, Message(_ROLES[role], text, None, ratings), reason, record.where)

    def _reason(self, record: Record) -> str | None:
        """Why the options leave a message out, or None."""
        if record.optional_flag("deleted") and not self.options.keep_deleted:
            return "deleted"
        if record.optional_flag("review_result") is False and not self.options.keep_rejected:
            return "rejected in review"
        if self.options.drop_unreviewed and record.optional_flag("review_result") is None:
            return "never reviewed"
        language = record.optional_text("lang")
        if self.options.languages and language is None:
            return "of unknown language"
        if language is not None and not self.options.takes_language(language):
            return "in another language"
        return None

    def _ratings(self, record: Record, role: Role) -> dict[str, float]:
        labels = list(_labels(record))
        taken: dict[str, float] = {}
        left_out: list[str] = []
        for name, value, count in labels:
            if name not in self.wanted:
                left_out.append("of attributes not taken")
                continue
            if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 1:
                raise record.fault(f"label {name}={value!r} must be a number in 0..1")
            if count is not None and (isinstance(count, bool) or not isinstance(count, int)):
                raise record.fault(f"the count of label {name} must be a whole number, found {count!r}")
            attribute = self.schema[name]
            if role == "user":
                left_out.append("of user messages")
            elif self.options.min_labels > 1 and (count or 0) < self.options.min_labels:
                left_out.append(f"fewer than {self.options.min_labels} labels")
            elif name in taken:
                raise record.fault(f"label {name} is given twice")
            else:
                taken[name] = attribute.low + value * (attribute.high - attribute.low)
        # Booked only now: a message with a faulty label counts as left out itself.
        self.report.read["ratings"] += len(labels)
        for reason in left_out:
            self.report.leave_out("ratings", reason)
        return taken


def read_oasst(
    sources: tuple[str, ...], options: ImportOptions, schema: Schema, report: Report
) -> Iterator[Conversation]:
    """Conversations of Open Assistant files in either layout, each message once however often it is listed."""
    reader = _Reader(options, schema, report, options.attributes_of(schema, RECIPE_ATTRIBUTES))
    nodes: dict[str, _Node] = {}
    for record in read_sources(sources, report):
        for part, parent, tree in _parts(record, report):
            report.read["messages"] += 1
            with report.tolerating("messages"):
                node = reader.node(part, parent, tree)
                if node.id in nodes:
                    report.leave_out_messages("listed before", [node.message])
                else:
                    nodes[node.id] = node
    yield from _conversations(nodes, NEMO_SYSTEM if options.system is None else options.system, report)


def _parts(record: Record, report: Report) -> Iterator[tuple[Record, object, str | None]]:
    """The messages of a record, with the ids of their parent and tree: itself, or all of the tree in it."""
    if "prompt" not in record.data:
        yield record, record.data.get("parent_id"), None
        return
    root = tree = None
    with report.tolerating("records"):
        tree = record.optional_text("message_tree_id")
        root = record.part("prompt", record.data["prompt"])
    stack: list[tuple[Record, object]] = [(root, None)] if root is not None else []
    while stack:
        part, parent = stack.pop()
        yield part, parent, tree
        # Below a message without an id there is nothing to attach to; "" is no message's id.
        name = part.data.get("message_id") or ""
        replies: list[tuple[Record, object]] = []
        with report.tolerating("records"):
            replies = [(part.part(f"reply {n}", reply), name) for n, reply in enumerate(part.items("replies"))]
        stack += reversed(replies)


def _labels(record: Record) -> Iterator[tuple[str, object, object]]:
    """(name, value, count) of each label that has a value, from either layout; the count is None where unknown."""
    data = record.data.get("labels")
    if data is None:
        return
    labels = record.part("labels", data)
    if isinstance(labels.data.get("name"), list):
        names, values = labels.items("name"), labels.items("value")
        counts = labels.items("count") or [None] * len(names)
        if not len(names) == len(values) == len(counts):
            raise labels.fault("name, value and count must be lists of the same length")
        found = list(zip(names, values, counts, strict=True))
    else:
        parts = {name: labels.part(name, item) for name, item in labels.data.items() if item is not None}
        found = [(name, part.data.get("value"), part.data.get("count")) for name, part in parts.items()]
    for name, value, count in found:
        if not isinstance(name, str):
            raise labels.fault(f"a label's name must be a string, found {kind_of(name)}")
        if value is not None:
            yield name, value, count


def _conversations(nodes: dict[str, _Node], system: str, report: Report) -> Iterator[Conversation]:
    """Join the messages into trees, in the order of the file, and take off what is to be left out."""
    trees: dict[str, list[_Node]] = {}
    orphans: list[_Node] = []
    for node in nodes.values():
        if node.parent is None:
            trees.setdefault(node.tree, []).append(node)
        elif node.parent in nodes:
            nodes[node.parent].children.append(node)
        else:
            orphans.append(node)
    reached = 0
    for orphan in orphans:
        below = [node for node, _ in _depth_first([orphan])]
        report.leave_out_messages("its parent is not in the data", [orphan.message])
        report.leave_out_messages("below a message left out", [node.message for node in below[1:]])
        reached += len(below)
    for name, roots in trees.items():
        found = list(_depth_first(roots))
        reached += len(found)
        conversation = Conversation(
            name, tuple(replace(node.message, parent=parent) for node, parent in found), system, "oasst"
        )
        reasons = {index: node.reason for index, (node, _) in enumerate(found) if node.reason is not None}
        if not conversation.responses:
            report.leave_out_conversation("without a response", conversation)
        elif (kept := without(conversation, reasons, report)) is not None:
            yield kept
    if reached < len(nodes):
        _book_cycles(nodes, [*orphans, *(root for roots in trees.values() for root in roots)], report)


def _depth_first(roots: list[_Node]) -> Iterator[tuple[_Node, int | None]]:
    """Each message below `roots` with the position of its parent in this order; answers in the order of the file."""
    stack: list[tuple[_Node, int | None]] = [(root, None) for root in reversed(roots)]
    count = 0
    while stack:
        node, parent = stack.pop()
        yield node, parent
        stack += [(child, count) for child in reversed(node.children)]
        count += 1


def _book_cycles(nodes: dict[str, _Node], roots: list[_Node], report: Report) -> None:
    """Complain of messages that hang from no root: each is in a cycle of parents, or below one."""
    reached = {node.id for node, _ in _depth_first(roots)}
    for node in nodes.values():
        if node.id not in reached:
            with report.tolerating("messages"):
                report.leave_out("ratings", "of messages left out", len(node.message.ratings))
                raise DataError(f"{node.where}: its parents form a cycle (parent_id {node.parent}); correct parent_id")
