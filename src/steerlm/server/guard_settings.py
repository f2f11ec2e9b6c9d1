"""Settings of what stands around the application."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Self

from pydantic import Field, model_validator

from steerlm.settings import Settings


class GuardSettings(Settings):
    """Who may use a server, and how much at a time."""

    keys: Path | None = None
    """File of API keys that clients must have, made by steerlm keys create; without it the server is open."""
    shared_cache: bool = False
    """Let prompts of one key go on from what was computed for prompts of others, which saves time where all have a long
    beginning in common; but a key's holder can then tell from times and counts what others have sent."""
    insecure: bool = False
    """Let anybody in who can reach the server, where there are no keys; otherwise it answers to localhost only."""
    running: Annotated[int, Field(ge=1)] = 32
    """Most answers computed at a time; the memory that they take grows with it."""
    waiting: Annotated[int, Field(ge=0)] = 256
    """Most answers that wait for their turn; beyond them requests are refused with 429."""
    scoring: Annotated[int, Field(ge=1)] = 16
    """Most requests whose answers are scored or measured at a time; four times as many requests for scores may wait."""
    body_bytes: Annotated[int, Field(ge=1024)] = 4 * 1024 * 1024
    """Largest body of a request."""
    body_seconds: Annotated[float, Field(gt=0)] = 30.0
    """Time in which a body must arrive."""
    arriving_bytes: Annotated[int, Field(ge=1024)] = 64 * 1024 * 1024
    """Most bytes held of bodies that are still arriving, all together, not counting the first 64 KiB of each; beyond
    them requests are refused with 429."""
    json_depth: Annotated[int, Field(ge=4)] = 32
    """Deepest nesting of a body."""
    json_items: Annotated[int, Field(ge=256)] = 32 * 1024
    """Most lists, objects and members of them in a body; numbers in lists are not counted."""
    cors_origins: list[str] = Field(default_factory=list)
    """Origins of web pages that may use the server from a browser, such as https://chat.example.com; * is any."""
    log_contents: bool = False
    """Write prompts into the log; without it only ids, counts, times and steering values are logged."""
    drain_seconds: Annotated[float, Field(ge=0)] = 30.0
    """Time for what is under way when the server is told to stop."""

    @model_validator(mode="after")
    def _room_for_a_body(self) -> Self:
        if self.arriving_bytes < self.body_bytes:
            raise ValueError(
                f"arriving_bytes={self.arriving_bytes} has no room for a body of body_bytes={self.body_bytes}; raise "
                "the one or lower the other"
            )
        return self
