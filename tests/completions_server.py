"""A server of /v1/completions whose answers a test writes itself, to the byte and to the moment."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

MODELS = {"object": "list", "data": [{"id": "policy", "object": "model", "max_model_len": 1000}]}


class Call:
    """One request, as a script answers it. Whatever it sends raises `OSError` once the client is gone."""

    def __init__(self, handler: BaseHTTPRequestHandler, body: dict[str, Any]) -> None:
        self.body = body
        self._handler = handler

    def begin(self, content_type: str = "text/event-stream") -> None:
        self._handler.send_response(200)
        self._handler.send_header("Content-Type", content_type)
        self._handler.send_header("Transfer-Encoding", "chunked")
        self._handler.end_headers()
        self._handler.wfile.flush()

    def raw(self, data: bytes) -> None:
        self._handler.wfile.write(b"%x\r\n%s\r\n" % (len(data), data))
        self._handler.wfile.flush()

    def event(self, data: Mapping[str, Any]) -> None:
        self.raw(f"data: {json.dumps(data, ensure_ascii=False)}\n\n".encode())

    def send(self, text: str = "", finish_reason: str | None = None, **more: Any) -> None:
        """A chunk of the one choice; `more` are further fields of it, such as token_ids."""
        self.event({"choices": [{"index": 0, "text": text, "finish_reason": finish_reason, **more}]})

    def tokens(self, *ids: int, finish_reason: str | None = None) -> None:
        """A chunk as vLLM sends it where token ids are asked for."""
        self.send("not looked at", finish_reason, token_ids=list(ids))

    def broken(self, data: bytes) -> None:
        """Bytes where HTTP has the length of the next chunk."""
        self._handler.wfile.write(data + b"\r\n")

    def done(self) -> None:
        self.raw(b"data: [DONE]\n\n")
        self._handler.wfile.write(b"0\r\n\r\n")
        self._handler.wfile.flush()

    def refuse(self, status: int, said: Any) -> None:
        data = said if isinstance(said, bytes) else json.dumps(said).encode()
        self._handler.send_response(status)
        self._handler.send_header("Content-Length", str(len(data)))
        self._handler.end_headers()
        self._handler.wfile.write(data)

    def drop(self) -> None:
        """Cut the connection as a server that dies does."""
        self._handler.wfile.flush()
        self._handler.connection.shutdown(socket.SHUT_RDWR)

    def wait_until_gone(self) -> None:
        """Send until the client has closed the connection."""
        try:
            while True:
                self.raw(b": still here\n\n")
                threading.Event().wait(0.01)
        except OSError:
            return


@dataclass
class CompletionsServer:
    """`script` answers each completion; what came is in `bodies` and `headers`, in order."""

    url: str
    script: Callable[[Call], None]
    models: Callable[[Call], None] = lambda call: call.refuse(200, MODELS)
    bodies: list[dict[str, Any]] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)
    connections: int = 0
    over: threading.Event = field(default_factory=threading.Event)
    """Set at the end of a test: what scripts may wait for."""


@contextmanager
def serving(script: Callable[[Call], None], port: int = 0) -> Iterator[CompletionsServer]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def setup(self) -> None:
            super().setup()
            server.connections += 1

        def answer(self, script: Callable[[Call], None], body: dict[str, Any]) -> None:
            server.headers.append({name.lower(): value for name, value in self.headers.items()})
            try:
                script(Call(self, body))
            except OSError:
                self.close_connection = True

        def do_GET(self) -> None:
            assert self.path == "/v1/models"
            self.answer(lambda call: server.models(call), {})

        def do_POST(self) -> None:
            assert self.path == "/v1/completions"
            size = int(self.headers["Content-Length"])
            data = self.rfile.read(size)
            if len(data) < size:  # cancelled before all was sent
                self.close_connection = True
                return
            body = json.loads(data)
            server.bodies.append(body)
            self.answer(lambda call: server.script(call), body)

        def log_message(self, *_: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", port), Handler) as http:
        server = CompletionsServer(f"http://127.0.0.1:{http.server_address[1]}", script)
        thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.01})
        http.daemon_threads = True
        thread.start()
        try:
            yield server
        finally:
            server.over.set()
            http.shutdown()
            thread.join()
