"""Conversations come back from their JSON form and from files as they went; trees agree with brute force."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from steerlm.conversation import Conversation
from steerlm.errors import DataError
from steerlm.files import load_conversations, write_conversations
from strategies import conversations, examples


@given(conversations())
def test_json_round_trip(conversation: Conversation) -> None:
    assert Conversation.from_dict(json.loads(json.dumps(conversation.to_dict()))) == conversation


@examples(25)
@given(
    st.lists(conversations(most=4), min_size=1, max_size=4, unique_by=lambda item: item.id),
    st.sampled_from([".jsonl", ".jsonl.gz", ".jsonl.zst"]),
)
def test_file_round_trip(made: list[Conversation], suffix: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"file{suffix}"
        assert write_conversations(path, made) == len(made)
        assert load_conversations(path) == made
        first = path.read_bytes()
        write_conversations(path, made)
        assert path.read_bytes() == first
        assert list(Path(folder).iterdir()) == [path]


@given(conversations(texts=st.just("x"), most=12))
def test_threads_agree_with_brute_force(conversation: Conversation) -> None:
    parents = [message.parent for message in conversation.messages]
    leaves = [index for index in range(len(parents)) if index not in parents]
    paths = []
    for leaf in leaves:
        path: list[int] = [leaf]
        while parents[path[0]] is not None:
            path.insert(0, parents[path[0]])  # type: ignore[arg-type]
        paths.append(tuple(path))
    assert sorted(conversation.threads()) == sorted(paths)
    counted = tuple(sum(index in path for path in paths) for index in range(len(parents)))
    assert conversation.threads_through == counted


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters()),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["id", "messages", "role", "text", "parent", "ratings", "system", "humor"]) | st.text(),
            inner,
        )
    ),
    max_leaves=12,
)
RECORDS = st.fixed_dictionaries(
    {},
    optional={
        "id": st.just("c") | JSON,
        "system": st.just("") | JSON,
        "messages": JSON
        | st.lists(
            st.fixed_dictionaries(
                {},
                optional={
                    "role": st.sampled_from(["user", "assistant"]) | JSON,
                    "text": st.text() | JSON,
                    "parent": st.none() | st.integers(-1, 2) | JSON,
                    "ratings": st.dictionaries(st.sampled_from(["humor", "wit"]), st.floats() | JSON) | JSON,
                    "predicted_by": JSON,
                },
            ),
            max_size=3,
        ),
    },
)


@examples(150)
@given(JSON | RECORDS)
def test_any_json_is_a_conversation_or_a_data_error(record: object) -> None:
    try:
        conversation = Conversation.from_dict(record)
    except DataError:
        return
    again = Conversation.from_dict(json.loads(json.dumps(conversation.to_dict(), ensure_ascii=False).encode()))
    assert again == conversation
