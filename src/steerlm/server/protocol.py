"""HTTP/1.1 connections that nobody can hold for nothing: slow headers, bodies that nobody reads, slow readers."""

from __future__ import annotations

import asyncio

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

HEADER_SECONDS = 20.0
"""Time for the headers of a request, and for the rest of a body whose request has been answered already."""
READER_SECONDS = 60.0
"""Time for a client to take what waits to be sent to it (a buffer of 64 KiB) before it is hung up on."""


class BoundedProtocol(H11Protocol):
    """uvicorn's protocol, with limits to its patience."""

    _patience: asyncio.TimerHandle | None = None
    _reader: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._be_patient()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self._be_patient()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self._be_patient()

    def connection_lost(self, exc: Exception | None) -> None:
        for timer in (self._patience, self._reader):
            if timer is not None:
                timer.cancel()
        super().connection_lost(exc)

    def pause_writing(self) -> None:
        super().pause_writing()
        self._reader = self.loop.call_later(READER_SECONDS, self.transport.abort)

    def resume_writing(self) -> None:
        super().resume_writing()
        if self._reader is not None:
            self._reader.cancel()

    def _be_patient(self) -> None:
        """Let a timer run while headers, or the rest of a body that nobody wants, are all that is awaited."""
        answered = self.cycle is not None and self.cycle.response_complete
        waits = self.conn.their_state is h11.IDLE or (answered and self.conn.their_state is h11.SEND_BODY)
        if not waits and self._patience is not None:
            self._patience.cancel()
            self._patience = None
        elif waits and self._patience is None:
            self._patience = self.loop.call_later(HEADER_SECONDS, self.transport.abort)
