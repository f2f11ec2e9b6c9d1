"""What generates without a server: transformers, llama-cpp-python, and our own engine bare."""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from steerlm.engines import EngineName, Request, Sampling, complete, make_engine
from steerlm.errors import EngineError
from steerlm.models.prompting import load_prompting

_LLAMA_CPP = Path(__file__).with_name("llama_cpp_peer.py")


def transformers_seconds(
    model: Path, dtype: str, groups: Sequence[Sequence[Sequence[int]]], tokens: int
) -> list[float]:
    """Seconds of `generate` for each group of prompts, computed as one batch padded on the left; greedy."""
    network = AutoModelForCausalLM.from_pretrained(model, dtype=getattr(torch, dtype)).eval()
    pad = AutoTokenizer.from_pretrained(model).pad_token_id or 0
    seconds = []
    for prompts in groups:
        width = max(map(len, prompts))
        ids_BT = torch.tensor([[pad] * (width - len(ids)) + list(ids) for ids in prompts])
        mask_BT = torch.tensor([[0] * (width - len(ids)) + [1] * len(ids) for ids in prompts])
        began = time.perf_counter()
        made_BT = network.generate(
            input_ids=ids_BT,
            attention_mask=mask_BT,
            do_sample=False,
            max_new_tokens=tokens,
            min_new_tokens=tokens,
            pad_token_id=pad,
        )
        seconds.append(time.perf_counter() - began)
        if made_BT.shape != (len(prompts), width + tokens):
            raise EngineError(f"transformers made {made_BT.shape[1] - width} tokens instead of {tokens}")
    return seconds


def engine_seconds(
    model: Path, name: EngineName, groups: Sequence[Sequence[Sequence[int]]], tokens: int
) -> list[float]:
    """Seconds of our engine without a server for each group of prompts, submitted together; greedy."""
    engine = make_engine(model, load_prompting(model), name)
    sampling = Sampling(max_tokens=tokens, min_tokens=tokens)
    seconds = []
    for prompts in groups:
        began = time.perf_counter()
        answers = complete(engine, [Request(tuple(ids), sampling) for ids in prompts])
        seconds.append(time.perf_counter() - began)
        if (made := sum(len(answer.tokens) for answer in answers)) != tokens * len(prompts):
            raise EngineError(f"the engine made {made} tokens instead of {tokens * len(prompts)}")
    engine.close()
    return seconds


def llama_cpp_seconds(
    python: Path, gguf: Path, groups: Sequence[Sequence[Sequence[int]]], tokens: int, threads: int
) -> list[float]:
    """Seconds of llama-cpp-python for each group, one prompt after another, as it has no batches; greedy."""
    asked = {"gguf": str(gguf), "groups": groups, "tokens": tokens, "threads": threads}
    done = subprocess.run([str(python), str(_LLAMA_CPP)], input=json.dumps(asked), capture_output=True, text=True)
    if done.returncode:
        raise EngineError(f"llama-cpp-python ended with {done.returncode}: {done.stderr[-2000:]}")
    return [float(value) for value in json.loads(done.stdout.splitlines()[-1])]
