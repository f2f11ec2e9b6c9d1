"""An OpenAI-compatible chat server that says what a script tells it to."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any, Self


@dataclass(frozen=True)
class Refusal:
    """An answer that is none: a status, the error's message, further headers."""

    status: int
    message: str = "no"
    headers: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Said:
    """An answer with the reason why it ended."""

    text: str | None
    finish: str = "stop"


Script = Callable[[dict[str, Any]], "str | Said | Refusal"]


class ChatServer:
    """Serves POST /v1/chat/completions from a thread. `requests` holds the bodies as they came, `keys` what stood in
    their Authorization, `busiest` how many were under way together at most. It counts words for tokens, unless it
    does not count, and gives a fingerprint where it has one.
    """

    def __init__(self, script: Script, counts: bool = True, fingerprint: str | None = None) -> None:
        self._counts = counts
        self.fingerprint = fingerprint
        self.requests: list[dict[str, Any]] = []
        self.keys: list[str | None] = []
        self.busiest = self._busy = 0
        self._script = script
        self._lock = threading.Lock()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self._server.daemon_threads = False
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01})

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_port}/v1"

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def answer(self, body: dict[str, Any], key: str | None) -> tuple[int, dict[str, str], dict[str, Any]]:
        """Status, headers and JSON of the response to a request."""
        with self._lock:
            self.requests.append(body)
            self.keys.append(key)
            self._busy += 1
            self.busiest = max(self.busiest, self._busy)
        try:
            said = self._script(body)
        finally:
            with self._lock:
                self._busy -= 1
        if isinstance(said, Refusal):
            return said.status, said.headers, {"error": {"message": said.message}}
        said = Said(said) if isinstance(said, str) else said
        words = [len(str(message["content"]).split()) for message in body["messages"]]
        choice = {
            "index": 0,
            "message": {"role": "assistant", "content": said.text},
            "finish_reason": said.finish,
        }
        usage = {"prompt_tokens": sum(words), "completion_tokens": len((said.text or "").split())}
        counted = {"usage": usage} if self._counts else {}
        marked = {"system_fingerprint": self.fingerprint} if self.fingerprint else {}
        return 200, {}, {"object": "chat.completion", "choices": [choice], **counted, **marked}

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        server = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            wbufsize = 1 << 16

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                if self.path == "/v1/chat/completions":
                    status, headers, record = server.answer(body, self.headers.get("Authorization"))
                else:
                    status, headers, record = 404, {}, {"error": "no such path"}
                data = json.dumps(record).encode()
                self.send_response(status)
                for name, value in {**headers, "Content-Length": str(len(data))}.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, *_: Any) -> None:
                """Tests print nothing."""

        return Handler
