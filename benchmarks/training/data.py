"""The same responses in two forms: our trees, and the flattened sequences that other trainers take.

Shapes: T tokens of a sequence, A attributes.
"""

from __future__ import annotations

import hashlib
import math
import random
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks.training.flops import model_flops
from benchmarks.training.options import DATA, TASKS, Options, Prepared, Work
from benchmarks.training.ours import make_task
from steerlm.attributes import STEERLM, Schema
from steerlm.conversation import Conversation, Message
from steerlm.errors import DataError
from steerlm.files import read_records, sha256, write_conversations, write_jsonl
from steerlm.models.directory import Kind
from steerlm.models.load import new_model
from steerlm.packing import fit
from steerlm.sources import Report, import_conversations
from steerlm.sources.detect import detect_kind
from steerlm.sources.trees import without
from steerlm.tokens import TokenTree
from steerlm.training.survey import Survey
from steerlm.training.task import Task

IGNORED = -100
"""Label of what is not trained, a token or a rating, as transformers and TRL have it."""
_LARGEST = 2


def prepare(options: Options, work: Work, folder: Path) -> Prepared:
    """Import, sample and flatten the data, and write them with the weights to start from to `folder`.

    Raises `DataError` where the two forms would not train the same tokens.
    """
    kind, name = TASKS[work]
    source = DATA[name]
    if not source.is_file():
        raise DataError(f"{source}: no such file; set STEERLM_SHARED_DATA to the folder that holds {name}")
    imported = import_conversations(detect_kind(source), source).conversations
    sampled = _sample([c for c in imported if _trained(c)], options.conversations, f"{options.seed}-{name}")
    torch.manual_seed(options.seed)
    survey = Survey.of(sampled)
    # Our training leaves out what nobody rated; so do the others.
    schema = STEERLM.only(survey.ratings)
    model = new_model(kind, options.base, schema, None, options.level_tokens, survey.commonest_system)
    model = model.save(folder / "start")
    task = make_task(model, options, "steerlm")
    report = Report(name, (source.name,), skip_faulty=False)
    conversations = [c for c in (_cut(c, task, options, report) for c in sampled) if c is not None]
    if work == "peak":
        conversations = _largest(conversations, task, options.batch)
    if not conversations:
        raise DataError(f"no trained response of {name} fits into context={options.context}; raise it")
    task.remember(Survey.of(conversations))
    threads = [thread for c in conversations for thread in flattened(c, kind)]
    trees, fitting = fit([task.tree(c, 0) for c in conversations], options.context, options.pack_tokens)
    flat = make_task(model, options, "steerlm-threads")
    flat.remember(Survey.of(threads))
    rows = [sequence(flat.tree(thread, 0), thread, kind, schema) for thread in threads]
    write_conversations(folder / "trees.jsonl", conversations)
    write_conversations(folder / "threads.jsonl", threads)
    write_jsonl(folder / "rows.jsonl", rows)
    steps = math.ceil(len(rows) / (options.batch * options.accumulation))
    thread_tokens = sum(len(row["input_ids"]) for row in rows)
    figures = {
        "data": {"name": name, "file": source.name, "sha256": sha256(source)},
        "sample": {
            "conversations_rated": sum(bool(_trained(c)) for c in imported),
            "seed": options.seed,
            "ids": [c.id for c in conversations],
            "ids_sha256": hashlib.sha256("\n".join(c.id for c in conversations).encode()).hexdigest(),
        },
        "left_out": report.left_out,
        "conversations": len(conversations),
        "trained_responses": sum(len(_trained(c)) for c in conversations),
        "trees": {"parts": len(trees), "split": fitting.split, "tokens": fitting.tokens},
        "threads": {
            "sequences": len(rows),
            "tokens": thread_tokens,
            "longest": max(len(row["input_ids"]) for row in rows),
        },
        "trained": _same_work(trees, rows, conversations, kind),
        "flops": model_flops(model.network, trees),
    }
    if fitting.truncated or fitting.dropped:
        raise DataError(f"{fitting.truncated} responses would be cut and {fitting.dropped} dropped; lower context")
    return Prepared(
        kind=kind,
        start=folder / "start",
        trees=folder / "trees.jsonl",
        threads=folder / "threads.jsonl",
        rows=folder / "rows.jsonl",
        batch_tokens={
            "steerlm": options.batch_tokens or math.ceil(fitting.tokens / steps),
            "steerlm-threads": options.batch_tokens or math.ceil(thread_tokens / steps),
        },
        figures=figures,
    )


def flattened(conversation: Conversation, kind: Kind) -> Iterator[Conversation]:
    """Conversations of one thread each: for the policy every thread from root to leaf that trains anything, for the
    attribute model the path to every rated response with the ratings of that one alone, as NeMo-Aligner's scripts do.
    """
    trained = _trained(conversation)
    paths = list(conversation.threads()) if kind == "policy" else [conversation.path(index) for index in trained]
    for number, path in enumerate(paths):
        if not set(path) & trained:
            continue
        last = path[-1]
        messages = []
        for place, index in enumerate(path):
            message = conversation.messages[index]
            ratings = message.ratings if kind == "policy" or index == last else {}
            messages.append(Message(message.role, message.text, place - 1 if place else None, ratings))
        yield Conversation(f"{conversation.id}/{number}", tuple(messages), conversation.system, conversation.source)


def sequence(tree: TokenTree, thread: Conversation, kind: Kind, schema: Schema) -> dict[str, Any]:
    """A thread as other trainers take it: `input_ids` [T] with, for the policy, `labels` [T], which are the token
    itself where it is trained; for the attribute model `labels` [A], the ratings. `IGNORED` is all else.

    Within a thread the end signal of a response is what the next turn opens with. Raises `DataError` where a dialect
    has it otherwise.
    """
    path = tree.path(len(tree.segments) - 1)
    ids = tree.path_ids(path[-1])
    conversation = thread.id.rpartition("/")[0]
    if kind == "attribute-model":
        ratings = thread.messages[-1].ratings
        labels: list[Any] = [float(ratings.get(name, IGNORED)) for name in schema.names]
    else:
        labels = [IGNORED] * len(ids)
        start = 0
        for index in path:
            segment = tree.segments[index]
            if segment.weight > 0:
                for offset in segment.trained():
                    place = start + offset
                    if place >= len(ids) or ids[place] != segment.ids[offset]:
                        raise DataError(f"conversation {thread.id}: a turn does not begin with the end of the last one")
                    labels[place] = ids[place]
            start += segment.shared
    return {"conversation": conversation, "input_ids": ids, "labels": labels}


def read_sequences(path: Path, conversations: Sequence[str] | None = None) -> list[dict[str, Any]]:
    """The rows of a file that `prepare` wrote, of all conversations or of some."""
    wanted = None if conversations is None else set(conversations)
    return [
        {"input_ids": record["input_ids"], "labels": record["labels"]}
        for _, record in read_records(path)
        if wanted is None or record["conversation"] in wanted
    ]


def _trained(conversation: Conversation) -> set[int]:
    """The responses that people rated: those that are trained, under the labels that are known of them."""
    return {index for index in conversation.responses if conversation.messages[index].ratings}


def _sample(conversations: list[Conversation], count: int | None, seed: str) -> list[Conversation]:
    if count is None or count >= len(conversations):
        return conversations
    kept = sorted(random.Random(seed).sample(range(len(conversations)), count))
    return [conversations[index] for index in kept]


def _cut(conversation: Conversation, task: Task, options: Options, report: Report) -> Conversation | None:
    """The conversation without messages beyond the context, and, where asked, without branches that train nothing."""
    tree = task.tree(conversation, 0)
    sizes = tree.path_sizes()
    reasons = {
        segment.message: f"beyond {options.context} tokens"
        for index, segment in enumerate(tree.segments)
        if segment.message >= 0 and sizes[index] > options.context
    }
    if options.flatten == "trained":
        useful = {
            index for response in _trained(conversation) - reasons.keys() for index in conversation.path(response)
        }
        reasons = {
            index: "trains nothing" for index in range(len(conversation.messages)) if index not in useful
        } | reasons
    kept = without(conversation, reasons, report)
    return kept if kept and _trained(kept) else None


def _largest(conversations: list[Conversation], task: Task, batch: int) -> list[Conversation]:
    """The conversations with the longest threads, enough for a batch of them, and those with the largest trees."""
    trees = [task.tree(c, 0) for c in conversations]
    lengths = [[sizes[end] for end in tree.active] for tree in trees for sizes in [tree.path_sizes()]]
    longest = sorted(((size, number) for number, sizes in enumerate(lengths) for size in sizes), reverse=True)
    largest = sorted(range(len(trees)), key=lambda number: -trees[number].size)[:_LARGEST]
    kept = {number for _, number in longest[:batch]} | set(largest)
    return [conversations[number] for number in sorted(kept)]


def _same_work(
    trees: Sequence[TokenTree], rows: Sequence[dict[str, Any]], conversations: Sequence[Conversation], kind: Kind
) -> dict[str, int]:
    """How much is trained, counted in both forms: tokens with their thread weights, or ratings."""
    if kind == "policy":
        of_trees = sum(
            int(part.segments[k].weight) * len(part.segments[k].trained()) for part in trees for k in part.active
        )
        of_rows = sum(label != IGNORED for row in rows for label in row["labels"])
        figures = {"thread_tokens": of_rows}
    else:
        of_trees = sum(len(c.messages[index].ratings) for c in conversations for index in _trained(c))
        of_rows = sum(label != IGNORED for row in rows for label in row["labels"])
        figures = {"ratings": of_rows}
    if of_trees != of_rows:
        raise DataError(f"trees train {of_trees} and threads {of_rows}; they would not be the same work")
    return figures
