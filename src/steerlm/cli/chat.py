"""`steerlm chat`: talk to a policy in the terminal, with its attributes at hand."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter
from rich.console import Console
from rich.table import Table
from rich.text import Text

from steerlm.cli.sampling import SamplingFlags, say
from steerlm.engines import Engine, LocalEngine, Sampling, batch, make_engine, stream
from steerlm.errors import ConfigError, SteerLMError
from steerlm.models.prompting import Prompting, load_prompting
from steerlm.steering import Turn, asked_values, parse_assignments, prompt_ids

HELP = """/set NAME VALUE   set an attribute for the answers to come (VALUE none: leave it unset)
/show             the attributes, their values and scales
/reset            forget the conversation and go back to the defaults
/system TEXT      replace the system text
/help             this list
/quit             leave (so does Ctrl-D)"""


@dataclass
class ChatSession:
    """A conversation with a policy: its turns, each with the values it was answered with, and those asked for now."""

    model: Prompting
    engine: Engine
    sampling: Sampling
    asked: dict[str, int | None] = field(default_factory=dict)
    system: str | None = None
    history: list[Turn] = field(default_factory=list)

    def answer(self, prompt: str, show: Callable[[str], None]) -> str:
        """Answer and remember; `show` gets the text as it comes. The oldest turns go where the context is full, once
        there is an answer without them.
        """
        values = asked_values(self.model.schema, self.asked)
        room = self.engine.context - self.sampling.max_tokens
        kept = list(self.history)
        while len(ids := prompt_ids(self.model, prompt, values, kept, self.system)) > room and kept:
            kept.pop(0)
        shown = []
        for piece in stream(self.engine, batch([ids], self.sampling)):
            shown.append(piece.text)
            show(piece.text)
        text = "".join(shown)
        self.history = [*kept, Turn(prompt, text, values)]
        return text

    def command(self, line: str) -> str | Table:
        """Carry out a `/command`; returns what to show. Raises `SteerLMError` where it makes no sense."""
        name, _, rest = line[1:].partition(" ")
        if name == "set":
            text = rest if "=" in rest else "=".join(rest.split(maxsplit=1))
            self.asked.update(parse_assignments(self.model.schema, [text]))
            return self._values()
        if name == "show":
            return self._values()
        if name == "reset":
            self.history.clear()
            self.asked.clear()
            return "a new conversation, attributes at their defaults"
        if name == "system":
            self.system = rest.strip()
            return "system text replaced" if self.system else "no system text"
        if name == "help":
            return HELP
        raise ConfigError(f"unknown command /{name}; /help lists them")

    def _values(self) -> Table:
        values = asked_values(self.model.schema, self.asked)
        table = Table(box=None)
        for column in ("attribute", "value", "scale", ""):
            table.add_column(column)
        for item in self.model.schema:
            shown = str(values[item.name]) if item.name in values else "unset"
            table.add_row(item.name, shown, f"{item.low}..{item.high}", Text(item.description))
        return table


def chat_command(
    model: Path,
    *,
    set_: Annotated[list[str] | None, Parameter(name=["--set", "-s"])] = None,
    system: str | None = None,
    sampling: Annotated[SamplingFlags | None, Parameter(name="*")] = None,
    engine: LocalEngine = "auto",
    device: str = "auto",
) -> None:
    """Talk to a policy; /set verbosity 0 steers its next answers, /help lists what else there is.

    Parameters
    ----------
    model
        Directory of a trained policy.
    set_
        An attribute and its value to begin with, such as verbosity=1. May be repeated.
    system
        System text; without it, the model's own.
    sampling
        How to choose tokens; each has a flag of its own.
    engine
        openvino (CPU, 8-bit weights, fast), torch (any device, any model), or auto.
    device
        Device to run on; auto takes a GPU where there is one.
    """
    chosen = (sampling or SamplingFlags()).sampling()
    policy = load_prompting(model)
    asked = parse_assignments(policy.schema, set_ or [])
    console = Console()
    with closing(make_engine(model, policy, engine, device, say=say)) as generator:
        console.print(f"{model}: /help for commands, Ctrl-D to leave", style="dim", highlight=False, markup=False)
        talk(ChatSession(policy, generator, chosen, asked, system), console, _lines(console))


def talk(session: ChatSession, console: Console, lines: Iterable[str]) -> None:
    """Answer lines until they end or one says /quit."""
    for line in lines:
        text = line.strip()
        if text in ("/quit", "/exit"):
            return
        try:
            if text.startswith("/"):
                console.print(session.command(text), highlight=False)
            elif text:
                before = len(session.history)
                session.answer(text, lambda part: console.print(Text(part), end="", soft_wrap=True))
                console.print()
                if forgotten := before + 1 - len(session.history):
                    console.print(f"the context is full: oldest turns forgotten: {forgotten}", style="dim")
        except SteerLMError as error:
            console.print(f"error: {error}", style="red", markup=False, highlight=False)
        except KeyboardInterrupt:
            console.print("\nstopped", style="dim")


def _lines(console: Console) -> Iterable[str]:
    while True:
        try:
            yield console.input("[bold]> [/bold]")
        except (EOFError, KeyboardInterrupt):
            console.print()
            return
