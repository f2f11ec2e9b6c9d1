"""The flags by which `generate` and `chat` choose engine and tokens."""

from __future__ import annotations

from dataclasses import asdict, dataclass

from rich.console import Console

from steerlm.engines import Sampling

_DEFAULT = Sampling()


def say(text: str) -> None:
    """Tell the user, beside the answers."""
    Console(stderr=True, soft_wrap=True).print(text, style="dim", markup=False, highlight=False)


@dataclass(frozen=True)
class SamplingFlags:
    """As `Sampling`, with the temperature left to the command where none is given."""

    max_tokens: int = _DEFAULT.max_tokens
    """Most tokens of an answer."""
    temperature: float | None = None
    """0 always takes the likeliest token; higher is more varied."""
    top_p: float = _DEFAULT.top_p
    """Sample from the likeliest tokens that have this probability together."""
    top_k: int = _DEFAULT.top_k
    """Sample from this many likeliest tokens; 0 means all."""
    repetition_penalty: float = _DEFAULT.repetition_penalty
    """Above 1 makes tokens that an answer used already less likely; it keeps small models from going in circles."""
    seed: int = _DEFAULT.seed
    """Same seed, same answers."""
    stop: tuple[str, ...] = _DEFAULT.stop
    """Text before which to stop. May be repeated."""

    def sampling(self, temperature: float = _DEFAULT.temperature) -> Sampling:
        """The settings, with `temperature` where no flag gives one. Raises `ConfigError` for unfit values."""
        given = {name: value for name, value in asdict(self).items() if value is not None}
        return Sampling(**{"temperature": temperature, **given})
