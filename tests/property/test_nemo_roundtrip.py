"""NeMo's chat and regression layouts lose nothing that they can say, whatever the texts."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from steerlm.attributes import STEERLM
from steerlm.conversation import Conversation, Message
from steerlm.files import write_jsonl
from steerlm.sources import import_conversations, to_nemo_regression, to_nemo_sft

PIECES = ["<extra_id_0>System\n", "<extra_id_1>", "\n<extra_id_1>User\n", "\n<extra_id_1>Assistant\n", "<extra_id_2>"]
TEXTS = st.lists(
    st.one_of(st.sampled_from([*PIECES, "\n", " ", "quality:4\n", "\r\n", "\u2028"]), st.text(max_size=5)), max_size=6
).map("".join)
RATINGS = st.dictionaries(st.sampled_from(STEERLM.names), st.integers(0, 4).map(float), max_size=4)


@st.composite
def trees(draw: st.DrawFn) -> Conversation:
    """A random tree in depth-first order; a number before each text keeps siblings apart."""
    messages: list[Message] = [Message("user", "0" + draw(TEXTS))]
    path = [0]
    for index in range(1, draw(st.integers(1, 7)) + 1):
        parent = draw(st.sampled_from(path))
        path = [*path[: path.index(parent) + 1], index]
        is_response = draw(st.booleans())
        text = f"{index}{draw(TEXTS)}"
        messages.append(
            Message("assistant" if is_response else "user", text, parent, draw(RATINGS) if is_response else {})
        )
    return Conversation("c", tuple(messages), system=draw(TEXTS))


def again(records: list[dict[str, Any]]) -> tuple[Conversation, ...]:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "records.jsonl"
        write_jsonl(path, records)
        return import_conversations("nemo", path).conversations


@settings(max_examples=150, deadline=None)
@given(trees())
def test_chat_records_become_the_tree_that_they_came_from(tree: Conversation) -> None:
    records = list(to_nemo_sft([tree]))
    [back] = again(records)
    assert list(to_nemo_sft([back])) == records
    assert [(m.role, m.parent, dict(m.ratings)) for m in back.messages] == [
        (m.role, m.parent, dict(m.ratings)) for m in tree.messages
    ]


@settings(max_examples=150, deadline=None)
@given(trees())
def test_regression_rows_become_a_tree_that_gives_them_again(tree: Conversation) -> None:
    records = list(to_nemo_regression([tree]))
    if records:
        assert list(to_nemo_regression(again(records))) == records
