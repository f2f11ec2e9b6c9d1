"""What another server sends of one answer, as pieces of ours."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from steerlm.dialects import Renderer
from steerlm.engines.base import Piece, Request
from steerlm.engines.completions_api import Chunk
from steerlm.engines.text import TextStream


class UpstreamAnswer:
    """Chunks of one answer in, pieces out. The last piece is kept in `last`: the server may add to it."""

    def __init__(self, number: int, request: Request, renderer: Renderer, end_ids: Sequence[int]) -> None:
        sampling = request.sampling
        self.stop = sampling.stop if renderer.end_is_token else (*sampling.stop, renderer.dialect.end)
        self.last: Piece | None = None
        self.server_ended = False
        self._number = number
        self._min_tokens = sampling.min_tokens
        self._end_ids = end_ids
        self._text = TextStream(renderer.tokenizer, self.stop, request.trim)
        self._made = 0
        self._tells = True

    def take(self, chunk: Chunk) -> list[Piece]:
        """The pieces in a chunk, but for the last of the answer."""
        if self.last is not None:
            return []
        self.server_ended = chunk.finish is not None
        tokens = chunk.tokens
        self._tells = self._tells and tokens is not None
        if tokens is None:  # text without tokens comes in one piece, or with as many as there are log-probabilities
            tokens = (-1,) * max(len(chunk.logprobs), bool(chunk.text))
        if not tokens and chunk.finish:
            tokens = (-1,)
        pieces = []
        for place, token in enumerate(tokens):
            ends = place == len(tokens) - 1
            text = chunk.text if ends and chunk.tokens is None else ""
            piece = self._piece(token, text, chunk.finish if ends else None)
            logprob = chunk.logprobs[place] if place < len(chunk.logprobs) else None
            piece = piece._replace(logprob=logprob)
            if piece.finish is not None:
                self.last = piece
                break
            pieces.append(piece)
        return pieces

    def untold(self, made: int | None) -> int:
        """Tokens that the server says to have made, less the pieces, which can be more; 0 of one that tells each."""
        return 0 if self._tells or made is None else made - self._made

    def _piece(self, token: int, text: str, finish: Any) -> Piece:
        self._made += 1
        if token in self._end_ids and self._made > self._min_tokens:
            return Piece(self._number, token, self._text.finish(), "stop")
        shown = self._text.push(token) if token >= 0 else self._text.push_text(text)
        if self._text.stopped:
            finish = "stop"
        elif finish is not None:
            shown += self._text.finish()
        return Piece(self._number, token, shown, finish)
