"""What a computation runs on and in."""

from __future__ import annotations

import torch

from steerlm.errors import ConfigError


def pick_device(name: str) -> torch.device:
    """`auto` is a GPU where there is one. Raises `ConfigError` for a device that cannot be used here."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError) as error:
        raise ConfigError(f"device {name!r} cannot be used here: {str(error).splitlines()[0]}") from error


def pick_precision(precision: str, device: torch.device) -> torch.dtype:
    """The type to compute in. `auto` takes bfloat16 only where the hardware multiplies it natively."""
    if precision == "fp32":
        return torch.float32
    if precision == "bf16":
        return torch.bfloat16
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float32
    return (
        torch.bfloat16 if torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported() else torch.float32
    )
