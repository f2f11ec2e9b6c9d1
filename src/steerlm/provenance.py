"""What a result was made with."""

from __future__ import annotations

import os
import platform
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from steerlm import __version__


def environment(*also: str) -> dict[str, Any]:
    """Versions of the code and its libraries, and the kind of machine (nothing that identifies it).

    `also` are libraries beside those that are always used.
    """
    return {
        "steerlm": __version__,
        "python": platform.python_version(),
        "libraries": {name: _version(name) for name in ("torch", "transformers", "tokenizers", "numpy", *also)},
        "machine": {"system": platform.system(), "architecture": platform.machine(), "cores": os.cpu_count()},
    }


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None
