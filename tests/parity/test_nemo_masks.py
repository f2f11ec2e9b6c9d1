"""What we train on is what NeMo's GPTSFTChatDataset trains on, character for character, along every thread."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from references import nemo_trained_text, thread_to
from steerlm.attributes import STEERLM
from steerlm.conversation import Conversation, Message
from strategies import examples, partial_values
from tiny import Markers, renderer

WORDS = st.lists(st.sampled_from(["Yes", "no", "☃", "line\nbreak", "4", "quality", "don't", "…", "\n\n"]), min_size=1)
TEXTS = WORDS.map(" ".join).map(lambda text: text.strip() or "ok")


@st.composite
def threads(draw: st.DrawFn) -> tuple[Conversation, dict[int, dict[str, float]]]:
    count = 2 * draw(st.integers(1, 3))
    roles = ("user", "assistant")
    messages = tuple(Message(roles[k % 2], draw(TEXTS), k - 1 if k else None) for k in range(count))  # type: ignore[arg-type]
    conversation = Conversation("c", messages, draw(st.just("") | TEXTS))
    return conversation, {index: draw(partial_values(STEERLM)) for index in conversation.responses}


def nemo_record(conversation: Conversation, labels: dict[int, dict[str, float]]) -> dict[str, object]:
    """The record of a thread as NeMo-Aligner's scripts write it."""
    turns = [
        {
            "from": message.role.capitalize(),
            "value": message.text,
            "label": STEERLM.label_line(labels.get(k, {})) or None,
        }
        for k, message in enumerate(conversation.messages)
    ]
    return {"system": conversation.system, "mask": "User", "type": "VALUE_TO_TEXT", "conversations": turns}


def our_trained_text(conversation: Conversation, labels: dict[int, dict[str, float]], markers: Markers) -> list[str]:
    made = renderer("gpt2", "nemo", markers)
    segments = made.tree(conversation, "policy", labels).segments
    return [
        made.tokenizer.decode([segment.ids[k] for k in segment.trained()]) for segment in segments if segment.weight > 0
    ]


def test_the_reference_on_an_example_by_hand() -> None:
    conversation = Conversation(
        "c", (Message("user", "a"), Message("assistant", "b", 0), Message("user", "c", 1), Message("assistant", "d", 2))
    )
    record = nemo_record(conversation, {1: {"quality": 4}})
    # The turn start of the second user turn is trained: it ends the first response. That of an assistant turn is not.
    assert nemo_trained_text(record) == ["b\n<extra_id_1>", "d\n<extra_id_1>"]


@pytest.mark.parametrize("markers", ["plain", "special", "levels"])
@given(threads())
def test_the_same_text_is_trained(markers: Markers, made: tuple[Conversation, dict[int, dict[str, float]]]) -> None:
    conversation, labels = made
    assert our_trained_text(conversation, labels, markers) == nemo_trained_text(nemo_record(conversation, labels))


@examples(30)
@given(st.data())
def test_every_thread_of_a_tree_is_trained_as_nemo_would(data: st.DataObject) -> None:
    """A tree trains each response once; NeMo trains it in every thread through it, on the same text."""
    messages = [Message("user", data.draw(TEXTS))]
    for _ in range(data.draw(st.integers(1, 7))):
        parent = data.draw(st.integers(0, len(messages) - 1))
        role = "assistant" if messages[parent].role == "user" else "user"
        messages.append(Message(role, data.draw(TEXTS), parent))  # type: ignore[arg-type]
    tree = Conversation("tree", tuple(messages), "S")
    labels = {index: data.draw(partial_values(STEERLM)) for index in tree.responses}
    rendered = renderer("gpt2", "nemo").tree(tree, "policy", labels)
    decode = renderer("gpt2", "nemo").tokenizer.decode
    ours = {s.message: decode([s.ids[k] for k in s.trained()]) for s in rendered.segments if s.is_response}
    for path in tree.threads():
        while tree.messages[path[-1]].role == "user":  # NeMo trains nothing after the last response
            path = path[:-1]
            if not path:
                break
        if path:
            here = {new: labels[old] for new, old in enumerate(path) if old in labels}
            record = nemo_record(thread_to(tree, path[-1]), here)
            assert nemo_trained_text(record) == [ours[index] for index in path if index in ours]


def test_nemos_own_sample_file(real_data: Path) -> None:
    """Records of NeMo-Aligner, as they are: the text between the markers and the text that is trained."""
    lines = (real_data / "nemo" / "acsft.jsonl").read_text(encoding="utf-8").splitlines()
    compared = 0
    for line in lines:
        record = json.loads(line)
        turns = record["conversations"]
        # Ours are trimmed, and name their roles; leave out the records where that alone makes a difference.
        trimmed = (
            all(turn["value"] == turn["value"].strip() for turn in turns)
            and record["system"].strip() == record["system"]
        )
        roles = [turn["from"] for turn in turns] == ["User", "Assistant"] * (len(turns) // 2)
        if not (trimmed and roles and record["mask"] == "User"):
            continue
        messages = tuple(
            Message(turn["from"].lower(), turn["value"], k - 1 if k else None) for k, turn in enumerate(turns)
        )
        conversation = Conversation("c", messages, record["system"])
        labels = {k: dict(STEERLM.parse_label_line(turn["label"])) for k, turn in enumerate(turns) if turn.get("label")}
        expected = nemo_trained_text({**record, "type": "VALUE_TO_TEXT"})
        assert our_trained_text(conversation, labels, "special") == expected  # type: ignore[arg-type]
        compared += 1
    assert compared > 50
