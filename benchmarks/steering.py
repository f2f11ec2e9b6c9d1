"""How long it takes to measure whether a policy steers, beside transformers' `generate` for the same answers.

    python -m benchmarks.steering --model runs/quickstart/policy --judge runs/quickstart/attribute-model

The evaluation is the sweep of `steerlm eval steering`: every level of every attribute on all prompts, generated, judged
and reckoned up under the policy's own condition; and once more without an attribute model, which leaves generating and
reckoning. Left out of what the command does by default are the base asked in words, several attributes at once, the
perplexity under the base, and the page with its figures. Transformers generates a seeded sample of the same answers, in
batches of each size named, and the seconds of an answer with the best of them are multiplied by their number.
"""

from __future__ import annotations

import os
import random
import shutil
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import torch
from cyclopts import Parameter
from pydantic import Field
from rich.console import Console
from transformers import AutoModelForCausalLM

from benchmarks.command import run_benchmark
from benchmarks.measure import apart, set_threads, surroundings
from benchmarks.serving.texts import prompts
from steerlm.engines import LocalEngine, Precision
from steerlm.evaluation.asks import sweep
from steerlm.evaluation.steering import Judges, evaluate_steering
from steerlm.evaluation.steering_settings import SteeringSettings
from steerlm.files import write_json
from steerlm.models.load import load_model
from steerlm.models.prompting import Prompting, load_prompting
from steerlm.settings import Settings
from steerlm.steering import prompt_ids


class Options(Settings):
    """Settings of the benchmark."""

    model: Path = Path("runs/quickstart/policy")
    """Directory of the policy."""
    judge: Path | None = None
    """Directory of an attribute model that scores the answers."""
    attributes: tuple[str, ...] = ()
    """Attributes to set to each of their levels; without any, all of the policy."""
    prompts: Annotated[int, Field(ge=1)] = 40
    """Prompts to answer at each level."""
    tokens: Annotated[int, Field(ge=1)] = 128
    """Most tokens of an answer."""
    engine: LocalEngine = "auto"
    """Engine of the evaluation."""
    precision: Precision = "f32"
    """What the engine computes in, where it is openvino; transformers computes in the same, with int8 in float32."""
    sample: Annotated[int, Field(ge=1)] = 64
    """Answers that transformers generates."""
    batches: tuple[Annotated[int, Field(ge=1)], ...] = (8, 32)
    """Sizes of its batches."""
    threads: Annotated[int, Field(ge=1)] = os.cpu_count() or 1
    """Cores to compute on."""
    out: Path = Path(__file__).parent / "results" / "steering.json"
    """File of the results."""


def evaluate(options: Options) -> dict[str, Any]:
    """Seconds of the evaluation, from loaded models to the written result, with a judge and without. OpenVINO's form of
    the policy is made beforehand, as it is once for each policy.
    """
    policy = load_model(options.model, "policy")
    judge = load_model(options.judge, "attribute-model") if options.judge else None
    settings = SteeringSettings(
        attributes=list(options.attributes or policy.schema.names),
        max_prompts=options.prompts,
        conditions=["policy"],
        goals=0,
        max_tokens=options.tokens,
        engine=options.engine,
        precision=options.precision,
        perplexity=False,
    )
    once = settings.model_copy(update={"max_prompts": 1, "max_tokens": 1, "attributes": settings.attributes[:1]})
    texts = prompts(options.prompts)
    folder = Path(tempfile.mkdtemp(prefix="steerlm."))
    try:
        evaluate_steering(policy, texts, once, folder / "first", directory=options.model)
        seconds = {}
        for name, judges in (("answered", Judges()), ("judged", Judges(judge))):
            began = time.perf_counter()
            evaluate_steering(policy, texts, settings, folder / name, judges, directory=options.model)
            seconds[name] = time.perf_counter() - began
    finally:
        shutil.rmtree(folder)
    return {
        "seconds": seconds["judged"],
        "seconds_without_judge": seconds["answered"],
        "answers": len(requests(policy, settings.attributes, texts)),
        "settings": settings.model_dump(mode="json"),
    }


def requests(policy: Prompting, attributes: Sequence[str], texts: Sequence[str]) -> list[list[int]]:
    """The different prompts that the evaluation asks, as token ids."""
    asks = sweep(policy.schema, attributes, len(texts))
    found = {tuple(prompt_ids(policy, texts[ask.prompt], ask.values(policy.schema))) for ask in asks}
    return [list(ids) for ids in sorted(found)]


def transformers_seconds(
    model: Path, groups: Sequence[Sequence[Sequence[int]]], tokens: int, precision: Precision
) -> float:
    """Seconds of `generate` for all groups of prompts, each a batch padded on the left; greedy."""
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    network = AutoModelForCausalLM.from_pretrained(model, dtype=dtype).eval()
    stops = load_prompting(model).renderer.stop_ids
    began = time.perf_counter()
    for group in groups:
        width = max(map(len, group))
        network.generate(
            input_ids=torch.tensor([[stops[0]] * (width - len(ids)) + list(ids) for ids in group]),
            attention_mask=torch.tensor([[0] * (width - len(ids)) + [1] * len(ids) for ids in group]),
            do_sample=False,
            max_new_tokens=tokens,
            eos_token_id=list(stops),
            pad_token_id=stops[0],
        )
    return time.perf_counter() - began


def main(*, options: Annotated[Options | None, Parameter(name="*")] = None) -> None:
    """Time the evaluation and transformers; print both, write the result."""
    options = options or Options()
    set_threads(options.threads)
    policy = load_prompting(options.model)
    asked = requests(policy, options.attributes or policy.schema.names, prompts(options.prompts))
    sample = random.Random(0).sample(asked, min(options.sample, len(asked)))
    ours = apart(options.threads, evaluate, options)
    theirs: dict[str, float] = {}
    for size in options.batches:
        groups = [sample[start : start + size] for start in range(0, len(sample), size)]
        seconds = apart(options.threads, transformers_seconds, options.model, groups, options.tokens, options.precision)
        theirs[f"batches of {size}"] = seconds / len(sample)
    estimate = min(theirs.values()) * len(asked)
    record = {
        "evaluation": ours,
        "transformers": {"seconds_per_answer": theirs, "sampled": len(sample), "seconds_for_all": estimate},
        "times_faster": estimate / ours["seconds_without_judge"],
        "times_faster_with_judge": estimate / ours["seconds"],
        **surroundings(),
    }
    write_json(options.out, record)
    Console().print(
        f"{len(asked)} answers: evaluated in {ours['seconds']:.0f} s, {ours['seconds_without_judge']:.0f} s without "
        f"judging; transformers would generate them in {estimate:.0f} s: {record['times_faster_with_judge']:.1f} and "
        f"{record['times_faster']:.1f} times"
    )


if __name__ == "__main__":
    run_benchmark("steering", main)
