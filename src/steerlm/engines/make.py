"""Which engine a policy is generated with."""

from __future__ import annotations

import importlib.util
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from steerlm.engines.base import Engine
from steerlm.errors import ConfigError, ModelError
from steerlm.models.prompting import Prompting

if TYPE_CHECKING:
    import torch

    from steerlm.engines.upstream import UpstreamSettings
    from steerlm.models.load import SteerModel

LocalEngine = Literal["auto", "openvino", "torch"]
EngineName = LocalEngine | Literal["upstream"]
Precision = Literal["f32", "int8", "bf16"]
"""What OpenVINO computes in.

f32 computes in float32 with 8-bit weights. An answer does then not depend on what is computed with it: scores of a
row alone and among 32 others differ by 4e-5.

int8 multiplies 8-bit weights with activations rounded to 8 bits in groups of 32, as llama.cpp does, and is faster by a
fifth to two thirds; where a difference of 1e-6 turns a rounding, scores differ by some 0.3. CPUs without products of
8-bit numbers (VNNI) compute it as f32.

bf16 computes in bfloat16 with float16 weights, on CPUs with AVX-512 or AMX. Those scores differ by 0.3, so that an
answer may change with the load; with AMX, prompts take a quarter of the time and 32 answers at a time half of it.
"""
CACHE_BYTES = 2 << 30
"""Memory that keys and values take at most, unless told otherwise: of OpenVINO all, of torch on a CPU those kept."""
MAX_BATCH = 64
"""Rows that are computed together unless told otherwise."""
Say = Callable[[str], None]
_LONG = 3.0
"""Seconds after which the conversion of weights is worth more than one line."""


def make_engine(
    directory: str | Path,
    prompting: Prompting,
    name: EngineName = "auto",
    device: str = "auto",
    upstream: UpstreamSettings | None = None,
    say: Say = lambda _: None,
    precision: Precision = "f32",
    cache_bytes: int | None = None,
    max_batch: int = MAX_BATCH,
) -> Engine:
    """The engine called `name` for the policy in a directory, of which `prompting` was loaded.

    `auto` is OpenVINO where it is installed, the device is the CPU and the model of a kind that it reads; else torch.
    `say` is told what takes its time, and why it is not OpenVINO that was taken.
    `cache_bytes` is the memory for OpenVINO's keys and values, and for those that torch keeps, with each engine's own
    default; `max_batch` is how many rows are computed together here, of which a request has one, with guidance two.
    Raises `ConfigError` for an engine that is not installed or does not go with device, precision or cache, and for a
    precision that OpenVINO lacks on this CPU, `ModelError` for a model that it cannot use.
    """
    _check_settings(name, precision, cache_bytes)
    if name == "upstream":
        if upstream is None:
            raise ConfigError("engine upstream needs the address of a server")
        from steerlm.engines.upstream import UpstreamEngine

        return UpstreamEngine(upstream, prompting.renderer, prompting.renderer.stop_ids)
    from steerlm.devices import pick_device

    chosen = pick_device(device)
    if _is_for_openvino(name, chosen, precision):
        made = _openvino(Path(directory), prompting, name, precision, say, cache_bytes, max_batch)
        if made is not None:
            return made
    from steerlm.engines.torch import TorchEngine
    from steerlm.models.load import load_model

    _tell_unused(precision, say)
    return TorchEngine(load_model(directory, "policy", chosen), max_batch, cache_bytes)


@contextmanager
def engine_for(
    model: SteerModel,
    directory: str | Path | None = None,
    name: LocalEngine = "auto",
    say: Say = lambda _: None,
    precision: Precision = "f32",
    cache_bytes: int | None = None,
) -> Iterator[Engine]:
    """As `make_engine`, for a model that is loaded, on its device; closed at the end.

    `directory` is where it lies. OpenVINO reads models from there, so that one that lies nowhere, such as an untuned
    base, is written to a temporary directory.
    """
    from steerlm.engines.torch import TorchEngine

    _check_settings(name, precision, cache_bytes)
    with ExitStack() as stack:
        engine: Engine | None = None
        if _is_for_openvino(name, model.device, precision):
            if directory is None:
                directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="steerlm."))) / "model"
                model.save(directory)
            engine = _openvino(Path(directory), model, name, precision, say, cache_bytes)
        if engine is None:
            _tell_unused(precision, say)
            engine = TorchEngine(model, cache_bytes=cache_bytes)
        stack.callback(engine.close)
        yield engine


def _check_settings(name: EngineName, precision: Precision, cache_bytes: int | None) -> None:
    if precision != "f32" and name in ("torch", "upstream"):
        raise ConfigError(f"precision {precision} is for engine openvino, not {name}; leave one of them out")
    if cache_bytes is not None and name == "upstream":
        raise ConfigError("the size of the cache is for engines that compute here, not upstream; leave one of them out")


def _tell_unused(precision: Precision, say: Say) -> None:
    if precision != "f32":
        say(f"precision {precision} is for engine openvino; torch computes in float32")


def _is_for_openvino(name: EngineName, device: torch.device, precision: Precision) -> bool:
    if name == "openvino" and device.type != "cpu":
        raise ConfigError(f"engine openvino runs on the CPU, not on {device}; use --device cpu or --engine torch")
    if name == "openvino" and not _has_openvino():
        raise ConfigError("engine openvino is not installed: pip install 'steerlm[serve]', or use --engine torch")
    taken = name == "openvino" or (name == "auto" and device.type == "cpu" and _has_openvino())
    if taken and precision != "f32":
        from steerlm.engines.openvino_network import require_computable

        require_computable(precision)  # before anything is read, written or converted
    return taken


def _has_openvino() -> bool:
    return importlib.util.find_spec("openvino_genai") is not None


def _openvino(
    directory: Path,
    prompting: Prompting,
    name: EngineName,
    precision: Precision,
    say: Say,
    cache_bytes: int | None,
    max_batch: int = MAX_BATCH,
) -> Engine | None:
    """None where it is not asked for by name and cannot read the model."""
    from steerlm.engines.openvino import OpenVinoEngine

    try:
        engine = OpenVinoEngine(
            directory,
            prompting,
            max_batch,
            precision=precision,
            cache_bytes=CACHE_BYTES if cache_bytes is None else cache_bytes,
            progress=conversion_progress(say),
        )
    except ModelError as error:
        if name == "openvino":
            raise ModelError(f"{error}; --engine torch takes any model whose layers all attend") from error
        say(f"engine torch, not openvino: {error}")
        return None
    if engine.context < engine.model_context:
        say(
            f"the cache has room for {engine.context} tokens of prompt and answer, of the {engine.model_context} that "
            "the model could take; steerlm serve and steerlm eval steering have --cache-gb for more"
        )
    return engine


def conversion_progress(say: Say) -> Callable[[int, int], None]:
    """Says that a model is being converted, where that takes a while each tenth of its tensors that is done, and that
    OpenVINO goes on with them.
    """
    began, told = time.monotonic(), 0

    def progress(done: int, total: int) -> None:
        nonlocal told
        if done == 1:
            say("converting the model for OpenVINO, once")
        tenths = 10 * done // total
        if done == total:
            say("the weights are converted; OpenVINO reads them and saves its own form")
        elif tenths > told and time.monotonic() - began > _LONG:
            told = tenths
            say(f"{10 * tenths}% of the weights are converted")

    return progress
