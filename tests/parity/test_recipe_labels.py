"""Imported data against the SteerLM recipe, derived here once more from the raw files, slowly and by itself.

The recipe (NeMo-Aligner's documentation and scripts): every root-to-leaf thread of every Open Assistant tree, none of
a single message; a response's label is `name:round(value * 4)` for quality, toxicity, humor and creativity, in this
order, as far as it has them; HelpSteer rows become one user turn and one response; a regression row is the header,
all turns without labels and `<extra_id_2>`, with one number for each of nine attributes, -100 where there is none.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from steerlm.attributes import STEERLM
from steerlm.dialects import NEMO_SYSTEM
from steerlm.sources import ImportOptions, import_conversations, to_nemo_regression, to_nemo_sft

Thread = list[tuple[str, str, str | None]]  # (from, text, label) of each turn

SYSTEM = (
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions."
)
NINE = ["quality", "toxicity", "humor", "creativity"]
NINE += ["helpfulness", "correctness", "coherence", "complexity", "verbosity"]


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]


def nested(messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The trees of a flat file, in the layout that the recipe reads."""
    copies = {m["message_id"]: {**m, "replies": []} for m in messages}
    for m in copies.values():
        if isinstance(m.get("labels"), dict) and "name" in m["labels"]:
            names, values = m["labels"]["name"], m["labels"]["value"]
            m["labels"] = {name: {"value": value} for name, value in zip(names, values, strict=True)}
        if m["parent_id"] in copies:
            copies[m["parent_id"]]["replies"].append(m)
    return [m for m in copies.values() if m["parent_id"] is None]


def recipe_label(message: dict[str, Any]) -> str | None:
    if message["role"] == "prompter":
        return None
    labels = message.get("labels") or {}
    found = [f"{name}:{round(labels[name]['value'] * (5 - 1))}" for name in NINE[:4] if name in labels]
    return ",".join(found) or None


def recipe_threads(message: dict[str, Any], good_only: bool = False) -> list[Thread]:
    if good_only and (message["deleted"] or message["review_result"] is False):
        return []
    turn = ("User" if message["role"] == "prompter" else "Assistant", message["text"], recipe_label(message))
    below = [thread for reply in message["replies"] for thread in recipe_threads(reply, good_only)]
    return [[turn, *thread] for thread in below] or [[turn]]


def recipe(roots: list[dict[str, Any]], good_only: bool = False) -> list[Thread]:
    return [thread for root in roots for thread in recipe_threads(root, good_only) if len(thread) > 1]


def recipe_regression(threads: list[Thread]) -> set[tuple[str, tuple[float, ...]]]:
    rows = set()
    for thread in threads:
        text = f"<extra_id_0>System\n{SYSTEM}\n"
        for name, value, label in thread:
            text += f"<extra_id_1>{name}\n{value}\n"
            if label:
                given = dict(item.split(":") for item in label.split(","))
                rows.add((text + "<extra_id_2>", tuple(float(given.get(name, -100)) for name in NINE)))
    return rows


def exported(conversations: Any) -> list[Thread]:
    records = list(to_nemo_sft(conversations))
    assert all(record["system"] == SYSTEM and record["mask"] == "User" for record in records)
    return [[(t["from"], t["value"], t["label"]) for t in record["conversations"]] for record in records]


def regression(conversations: Any, **options: Any) -> list[tuple[str, tuple[float, ...]]]:
    return [(row["text"], tuple(row["label"])) for row in to_nemo_regression(conversations, **options)]


def test_our_constants_are_the_recipes() -> None:
    assert list(STEERLM.names) == NINE
    assert NEMO_SYSTEM == SYSTEM


@pytest.mark.parametrize(
    ("file", "threads", "labelled"),
    [("oasst1/messages.jsonl", 847, 1048), ("oasst2/trees.jsonl", 57, 70)],
)
def test_all_of_open_assistant_gives_the_recipes_threads_and_labels(
    real_data: Path, file: str, threads: int, labelled: int
) -> None:
    raw = read(real_data / file)
    if "prompt" in raw[0]:
        # One of the 60 trees, a prompt without answers, is in the file twice.
        roots = list({item["message_tree_id"]: item["prompt"] for item in raw}.values())
    else:
        roots = nested(raw)
    wanted = recipe(roots)
    options = ImportOptions(keep_deleted=True, keep_rejected=True)
    conversations = import_conversations("oasst", real_data / file, options).conversations
    assert exported(conversations) == wanted
    assert len(wanted) == threads
    rows = regression(conversations)
    assert set(rows) == recipe_regression(wanted)
    assert len(rows) == labelled


def test_open_assistant_without_deleted_and_rejected_messages_gives_the_recipes_labels(real_data: Path) -> None:
    raw = read(real_data / "oasst1" / "messages.jsonl")
    conversations = import_conversations("oasst", real_data / "oasst1" / "messages.jsonl").conversations
    wanted = recipe(nested(raw), good_only=True)
    assert exported(conversations) == wanted
    assert len(wanted) < len(recipe(nested(raw)))


def test_labels_that_lie_between_two_levels_are_in_the_data(real_data: Path) -> None:
    """Rounding half to even is put to the test by real labels: some lie exactly between two levels."""
    values = [
        value * 4
        for message in read(real_data / "oasst1" / "messages.jsonl")
        if message["role"] == "assistant" and message["labels"]
        for name, value in zip(message["labels"]["name"], message["labels"]["value"], strict=True)
        if name in NINE[:4]
    ]
    halves = [value for value in values if value % 1 == 0.5]
    assert any(int(value) % 2 == 0 for value in halves)
    assert any(int(value) % 2 == 1 for value in halves)


def test_helpsteer_gives_the_recipes_records_in_order(real_data: Path) -> None:
    raw = read(real_data / "helpsteer" / "train.jsonl")
    wanted: list[Thread] = [
        [
            ("User", row["prompt"], None),
            ("Assistant", row["response"], ",".join(f"{name}:{row[name]}" for name in NINE if name in row)),
        ]
        for row in raw
    ]
    conversations = import_conversations("helpsteer", real_data / "helpsteer" / "train.jsonl").conversations
    assert exported(conversations) == wanted
    assert (len(wanted), len(conversations)) == (398, 111)


def test_nemos_chat_file_gives_the_recipes_regression_rows(real_data: Path) -> None:
    """Byte for byte, outer space included: texts are neither trimmed on import nor on export."""
    raw = read(real_data / "nemo" / "acsft.jsonl")
    wanted = recipe_regression(
        [[(t["from"], t["value"], t["label"]) for t in record["conversations"]] for record in raw]
    )
    conversations = import_conversations("nemo", real_data / "nemo" / "acsft.jsonl").conversations
    rows = regression(conversations, system=SYSTEM)
    assert set(rows) == wanted
    assert len(rows) == len(wanted) == 128


def test_trimming_would_change_some_rows_of_nemos_chat_file(real_data: Path) -> None:
    """What the renderer's trimming means for NeMo's data: these rows hold a text with outer white space."""
    conversations = import_conversations("nemo", real_data / "nemo" / "acsft.jsonl").conversations
    untrimmed = [
        row
        for row in regression(conversations)
        if any(text != text.strip() for text in re.split(r"\n?<extra_id_\d>(?:System\n|User\n|Assistant\n)?", row[0]))
    ]
    assert len(untrimmed) == 7
    assert len(regression(conversations)) == 128
