"""What the chat shows of a model."""

from __future__ import annotations

import io
from types import SimpleNamespace
from typing import Any

from rich.console import Console

from steerlm.attributes import Attribute, Schema
from steerlm.cli.chat import ChatSession
from steerlm.engines import Sampling


def test_descriptions_are_no_markup() -> None:
    model: Any = SimpleNamespace(schema=Schema((Attribute("humor", description="fun [0-4] [/x]"),)))
    engine: Any = None
    shown = Console(record=True, width=120, file=io.StringIO())
    shown.print(ChatSession(model, engine, Sampling()).command("/show"))
    assert "fun [0-4] [/x]" in shown.export_text()
