"""Pages made from templates: what they share."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape


def page(template: str, **values: Any) -> str:
    """A page made from a template of `steerlm/templates`. HTML is escaped, other text is not."""
    environment = Environment(
        loader=PackageLoader("steerlm"),
        autoescape=select_autoescape(["html.jinja"]),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= {"figure": figure, "number": number, "cell": cell, "fenced": fenced}
    return environment.get_template(template).render(**values)


def cell(text: str) -> str:
    """Text in a cell of a Markdown table, which a bar or the end of a line would close."""
    return " ".join(text.split()).replace("\\", "\\\\").replace("|", "\\|")


def fenced(text: str) -> str:
    """A Markdown block of text as it is, with fences longer than any run of backticks in it."""
    longest = max((len(run) for run in re.findall("`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}text\n{text}\n{fence}"


def figure(estimate: Mapping[str, Any] | None, digits: int = 2) -> str:
    """`0.52 [0.40, 0.63]`, or a dash where there is none."""
    if estimate is None or not is_number(estimate["value"]):
        return "–"
    if not (is_number(estimate["low"]) and is_number(estimate["high"])):
        return f"{estimate['value']:.{digits}f}"
    return f"{estimate['value']:.{digits}f} [{estimate['low']:.{digits}f}, {estimate['high']:.{digits}f}]"


def number(value: Any, digits: int = 2) -> str:
    """A number, or a dash."""
    return f"{value:.{digits}f}" if is_number(value) else "–"


def is_number(value: Any) -> bool:
    """Whether it is a finite number."""
    return isinstance(value, int | float) and math.isfinite(value)
