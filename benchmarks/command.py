"""How every benchmark is called: settings as flags, errors in a line."""

from __future__ import annotations

import sys
from collections.abc import Callable

import cyclopts
from cyclopts import Parameter

from steerlm.errors import SteerLMError


def run_benchmark(name: str, main: Callable[..., None]) -> None:
    """Run `main` as `python -m benchmarks.NAME`. A flag for a list takes all values that follow it."""
    try:
        cyclopts.App(
            name=f"python -m benchmarks.{name}",
            default_command=main,
            default_parameter=Parameter(consume_multiple=True, negative=()),
            result_action="return_value",
        )()
    except SteerLMError as error:
        sys.exit(f"error: {error}")
