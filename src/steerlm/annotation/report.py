"""What an annotation did, in numbers."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self


@dataclass(frozen=True, slots=True)
class Totals:
    """Counts from the first line of the input through `line`.

    responses   assistant messages: those scored and those dropped
    scored      responses that carry `predicted`; `truncated` of them without their oldest turns
    dropped     responses too long for the context even alone with their prompt; they carry no `predicted`
    rejected    malformed lines
    tokens      tokens computed, each shared prefix once
    """

    line: int = 0
    conversations: int = 0
    responses: int = 0
    scored: int = 0
    truncated: int = 0
    dropped: int = 0
    rejected: int = 0
    tokens: int = 0

    def __add__(self, window: Totals) -> Totals:
        """The totals with those of the next window."""
        sums = {name: getattr(self, name) + getattr(window, name) for name in self.__dataclass_fields__}
        return Totals(**{**sums, "line": window.line})

    def to_dict(self) -> dict[str, int]:
        return asdict(self)

    @classmethod
    def from_dict(cls, record: dict[str, int]) -> Self:
        return cls(**record)


@dataclass(frozen=True, slots=True)
class AnnotationReport:
    """The outcome of `annotate`.

    model      fingerprint of the attribute model: what `predicted_by` says
    totals     counts over the whole file
    resumed    conversations taken from earlier, interrupted runs; all of them where the file was finished before
    seconds    time of this run, in which `here` counts what was done
    rejects    where malformed lines were put, if there were any
    """

    data: Path
    out: Path
    model: str
    totals: Totals
    resumed: int = 0
    seconds: float = 0.0
    here: Totals = Totals()
    rejects: Path | None = None

    @property
    def responses_per_second(self) -> float:
        return self.here.scored / self.seconds if self.seconds else 0.0

    @property
    def tokens_per_second(self) -> float:
        return self.here.tokens / self.seconds if self.seconds else 0.0

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return {
            "data": str(self.data),
            "out": str(self.out),
            "model": self.model,
            **{name: value for name, value in self.totals.to_dict().items() if name != "line"},
            "rejects": str(self.rejects) if self.rejects else None,
            "resumed": self.resumed,
            "seconds": round(self.seconds, 3),
            "responses_per_second": round(self.responses_per_second, 2),
            "tokens_per_second": round(self.tokens_per_second, 1),
        }

    def __str__(self) -> str:
        totals = self.totals
        parts = [f"{totals.conversations} conversations, {totals.scored} responses scored"]
        if totals.truncated:
            parts.append(f"{totals.truncated} of them without their oldest turns")
        if totals.dropped:
            parts.append(f"{totals.dropped} responses too long and left without predicted")
        if totals.rejected:
            parts.append(f"{totals.rejected} malformed lines put aside in {self.rejects}")
        if self.resumed:
            parts.append(f"{self.resumed} conversations were done before")
        if self.here.scored:
            parts.append(
                f"{self.responses_per_second:.1f} responses/s, {self.tokens_per_second:.0f} tokens/s "
                f"in {self.seconds:.0f} s"
            )
        return "; ".join(parts)
