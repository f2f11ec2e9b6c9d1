"""Settings of scoring, and of annotating a file."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from steerlm.settings import Settings
from steerlm.training.config import Precision


class ScoreSettings(Settings):
    """How the attribute model reads conversations."""

    context: Annotated[int, Field(ge=16)] | None = None
    """Longest path in tokens; older turns beyond it are cut off. Without one, that of the model's training."""
    pack_tokens: Annotated[int, Field(ge=16)] = 4096
    """Tokens in one forward pass (never fewer than the context); more need more memory."""
    precision: Precision = "auto"
    """fp32, bf16 (autocast, weights stay fp32), or auto: bf16 where the hardware computes it natively."""


class AnnotateSettings(ScoreSettings):
    """How a file is annotated."""

    strict: bool = False
    """Stop at the first malformed line instead of putting it aside in OUT.rejects.jsonl."""
    window_bytes: Annotated[int, Field(ge=1)] = 128 * 1024
    """Text that is scored between two syncs of the journal: the most work that a kill can cost."""
    window_conversations: Annotated[int, Field(ge=1)] = 512
    """Most conversations between two syncs of the journal."""
