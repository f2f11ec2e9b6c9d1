"""Which engine a policy is generated with."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from steerlm.engines.base import Engine
from steerlm.errors import ConfigError, ModelError
from steerlm.models.prompting import Prompting

if TYPE_CHECKING:
    from steerlm.engines.upstream import UpstreamSettings

EngineName = Literal["auto", "openvino", "torch", "upstream"]
Precision = Literal["f32", "bf16"]
"""What OpenVINO computes in.

f32 computes in float32 with 8-bit weights. An answer does then not depend on what is computed with it: scores of a
row alone and among 32 others differ by 4e-5.

bf16 computes in bfloat16 with float16 weights. Those scores differ by 0.3, so that an answer may change with the load;
on CPUs that multiply bfloat16 natively, prompts take a quarter of the time and 32 answers at a time half of it.
"""
Say = Callable[[str], None]


def make_engine(
    directory: str | Path,
    prompting: Prompting,
    name: EngineName = "auto",
    device: str = "auto",
    upstream: UpstreamSettings | None = None,
    say: Say = lambda _: None,
    precision: Precision = "f32",
) -> Engine:
    """The engine called `name` for the policy in a directory, of which `prompting` was loaded.

    `auto` is OpenVINO where it is installed, the device is the CPU and the model of a kind that it reads; else torch.
    `say` is told what takes its time, and why it is not OpenVINO that was taken.
    Raises `ConfigError` for an engine that is not installed or does not go with device or precision, `ModelError` for a
    model that it cannot use.
    """
    if precision != "f32" and name in ("torch", "upstream"):
        raise ConfigError(f"precision {precision} is for engine openvino, not {name}; leave one of them out")
    if name == "upstream":
        if upstream is None:
            raise ConfigError("engine upstream needs the address of a server")
        from steerlm.engines.upstream import UpstreamEngine

        return UpstreamEngine(upstream, prompting.renderer, prompting.renderer.stop_ids)
    from steerlm.devices import pick_device

    chosen = pick_device(device)
    if name == "openvino" and chosen.type != "cpu":
        raise ConfigError(f"engine openvino runs on the CPU, not on {chosen}; use --device cpu or --engine torch")
    if name == "openvino" and not _has_openvino():
        raise ConfigError("engine openvino is not installed: pip install 'steerlm[serve]', or use --engine torch")
    if name == "openvino" or (name == "auto" and chosen.type == "cpu" and _has_openvino()):
        try:
            return _openvino(Path(directory), prompting, precision, say)
        except ModelError as error:
            if name == "openvino":
                raise ModelError(f"{error}; --engine torch takes every model") from error
            say(f"engine torch, not openvino: {error}")
    from steerlm.engines.torch import TorchEngine
    from steerlm.models.load import load_model

    return TorchEngine(load_model(directory, "policy", chosen))


def _has_openvino() -> bool:
    return importlib.util.find_spec("openvino_genai") is not None


def _openvino(directory: Path, prompting: Prompting, precision: Precision, say: Say) -> Engine:
    from steerlm.engines.openvino import OpenVinoEngine

    def progress(done: int, total: int) -> None:
        if done == 1:
            say("converting the model for OpenVINO, once, some ten seconds")

    return OpenVinoEngine(directory, prompting, precision=precision, progress=progress)
