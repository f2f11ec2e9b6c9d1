"""What the benchmark is told."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from steerlm.engines import EngineName
from steerlm.settings import Settings

Work = Literal["throughput", "overhead", "sweep", "second-turn", "load"]
Contender = Literal["steerlm", "steerlm-int8", "steerlm-bf16", "transformers", "vllm", "llama-cpp"]


class Options(Settings):
    """Settings of the benchmark; what is not named here is the same fixed value for all."""

    model: Path = Path("runs/quickstart/policy")
    """Directory of the policy that all of them serve."""
    work: tuple[Work, ...] = ("throughput", "overhead", "sweep", "second-turn", "load")
    """What to measure."""
    contenders: tuple[Contender, ...] = ("steerlm", "steerlm-int8", "steerlm-bf16", "transformers")
    """Who generates: our server, as it is and with `--precision int8` or `bf16`, transformers' generate, and where they
    are installed vLLM's server for CPUs and llama-cpp-python, each from the environment named below."""
    engine: EngineName = "auto"
    """Engine of our server."""
    vllm_python: Path | None = None
    """Interpreter of an environment with vLLM for CPUs."""
    llama_cpp_python: Path | None = None
    """Interpreter of an environment with llama-cpp-python."""
    out: Path = Path(__file__).parents[1] / "results" / "serving.json"
    """File of the results; other work in it stays."""
    threads: Annotated[int, Field(ge=1)] = os.cpu_count() or 1
    """Cores to compute on."""
    repeat: Annotated[int, Field(ge=1)] = 3
    """How often each is measured, after one round that does not count; medians are compared."""
    batches: tuple[Annotated[int, Field(ge=1)], ...] = (1, 8, 32)
    """Clients that ask at the same time."""
    tokens: Annotated[int, Field(ge=1)] = 64
    """Tokens of each answer: no more, and no fewer."""
    settings: Annotated[int, Field(ge=1, le=25)] = 25
    """Settings of the sweep: levels of verbosity times levels of complexity."""
    sweep_tokens: Annotated[int, Field(ge=16)] = 800
    """Tokens of the conversation that is swept, up to its question; the result has what they came to."""
    turn_tokens: Annotated[int, Field(ge=16)] = 2000
    """Tokens of the conversation whose second turn is timed, likewise."""
    clients: Annotated[int, Field(ge=1)] = 64
    """Clients of the load."""
    seconds: Annotated[float, Field(gt=0)] = 60.0
    """How long they ask."""
    load_cache_gb: Annotated[float, Field(gt=0)] = 0.5
    """Memory for keys and values under the load, in GiB."""
    waiting: Annotated[int, Field(ge=1)] = 256
    """Requests that our server lets wait; beyond them it refuses."""
    flood: Annotated[int, Field(ge=1)] = 10
    """How many times what the queue takes is then asked at once."""
