"""Run by an interpreter that has llama-cpp-python and need not have steerlm: a task on stdin, seconds on stdout."""

from __future__ import annotations

import json
import sys
import time

from llama_cpp import Llama


def main() -> None:
    """Answer each group of prompts one by one, greedily, with exactly the tokens asked for."""
    task = json.load(sys.stdin)
    context = max(len(ids) for group in task["groups"] for ids in group) + task["tokens"] + 8
    model = Llama(task["gguf"], n_ctx=context, n_threads=task["threads"], verbose=False)
    seconds = []
    for group in task["groups"]:
        began = time.perf_counter()
        for ids in group:
            made = model.generate(ids, temp=0.0)
            for _ in range(task["tokens"]):
                next(made)
        seconds.append(time.perf_counter() - began)
    print(json.dumps(seconds))


if __name__ == "__main__":
    main()
