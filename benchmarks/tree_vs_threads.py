"""Tokens and seconds of one forward and backward pass: conversation trees against their flattened threads.

    python benchmarks/tree_vs_threads.py [--data FILE ...] [--conversations N]

Without data it takes the bundled sample. Same weights, same trained responses, same machine, one process; the loss
sums of both forms are in the result, to show that they are the same work.
Writes benchmarks/results/tree_vs_threads.json.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from steerlm.attention import use_tree_attention
from steerlm.attributes import STEERLM
from steerlm.conversation import Conversation, Message
from steerlm.files import load_conversations, write_json
from steerlm.models.load import SteerModel, new_model
from steerlm.packing import fit, pack
from steerlm.provenance import environment
from steerlm.sources.bundled import SAMPLE
from steerlm.training.policy import response_nll
from steerlm.training.task import Batch

RESULT = Path(__file__).parent / "results" / "tree_vs_threads.json"


def flattened(conversations: Sequence[Conversation]) -> list[Conversation]:
    """Every thread as a conversation of its own."""
    return [
        Conversation(
            f"{c.id}/{number}",
            tuple(Message(c.messages[i].role, c.messages[i].text, k - 1 if k else None) for k, i in enumerate(thread)),
            c.system,
        )
        for c in conversations
        for number, thread in enumerate(c.threads())
    ]


def measure(model: SteerModel, conversations: Sequence[Conversation], weights: str) -> dict[str, Any]:
    """One pass over everything. With weights `threads` a response counts once for each thread through it."""
    trees = [
        model.renderer.tree(
            c, "policy", weights={i: float(c.threads_through[i]) for i in c.responses} if weights == "threads" else None
        )
        for c in conversations
    ]
    fitted, report = fit(trees, 1024, 2048)
    packs = pack(fitted, 2048)
    loss = count = 0.0
    began = time.perf_counter()
    for item in packs:
        batch = Batch.of(item, model.device)
        weights_N = batch.tensor(item.weights_N)
        total = (response_nll(model, batch) * weights_N).sum()
        total.backward()  # type: ignore[no-untyped-call]
        model.network.zero_grad(set_to_none=True)
        loss, count = loss + total.item(), count + weights_N.sum().item()
    seconds = time.perf_counter() - began
    return {
        "tokens": report.tokens,
        "packs": len(packs),
        "fill": report.tokens / (2048 * len(packs)),
        "seconds": seconds,
        "tokens_per_second": report.tokens / seconds,
        "loss_sum": loss,
        "trained_tokens": count,
    }


def main() -> None:
    """Measure both forms and write the result."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", nargs="*", type=Path, default=[SAMPLE])
    parser.add_argument("--conversations", type=int, default=12)
    arguments = parser.parse_args()
    conversations = [c for path in arguments.data for c in load_conversations(path)][: arguments.conversations]
    model = new_model("policy", "smollm2", STEERLM)
    model.network.train()
    use_tree_attention(model.network, "segments")
    torch.manual_seed(0)
    trees = measure(model, conversations, weights="threads")
    threads = measure(model, flattened(conversations), weights="one")
    result = {
        "data": [path.name for path in arguments.data],
        "conversations": len(conversations),
        "precision": "fp32",
        "trees": trees,
        "threads": threads,
        "token_ratio": threads["tokens"] / trees["tokens"],
        "time_ratio": threads["seconds"] / trees["seconds"],
        **environment(),
    }
    write_json(RESULT, result)
    print(f"threads: {result['token_ratio']:.2f} times the tokens, {result['time_ratio']:.2f} times the time of trees")
    print(f"loss sums {trees['loss_sum']:.3f} and {threads['loss_sum']:.3f}; written to {RESULT}")


if __name__ == "__main__":
    main()
