"""A server on a real socket, in a thread, and an engine that does what a test tells it to."""

from __future__ import annotations

import http.client
import io
import json
import socket
import threading
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any, TextIO, cast

from fastapi import FastAPI
from prometheus_client.parser import text_string_to_metric_families

from steerlm.annotation.scorer import Fitted, Scored, Scorer
from steerlm.attributes import STEERLM
from steerlm.conversation import Conversation
from steerlm.engines.base import Deliver, Engine, Piece, Request
from steerlm.errors import EngineError
from steerlm.models.directory import ModelInfo
from steerlm.models.prompting import Prompting
from steerlm.packing import Pack, Report, lay_out
from steerlm.server.app import create_app
from steerlm.server.guard import Guard
from steerlm.server.guard_settings import GuardSettings
from steerlm.server.judge import Judge
from steerlm.server.limits import ServerLimits
from steerlm.server.logs import RequestLog
from steerlm.server.run import listen, make_server
from steerlm.server.state import ServerState
from steerlm.tokens import Segment, Span, TokenTree
from tiny import renderer


@dataclass
class ScriptedEngine:
    """Answers "a a a ..." at its own speed, each submission in a thread; it counts what goes on in it.

    `pause` are seconds between tokens; while `hold` is set no token is made; where `broken` is set everything fails.
    """

    context: int = 2048
    guides: bool = True
    guided_context: int = 2048
    pause: float = 0.0
    hold: threading.Event = field(default_factory=threading.Event)
    broken: bool = False
    running: int = 0
    most: int = 0
    cancelled: int = 0
    tokens: int = 0
    salts: list[str] = field(default_factory=list)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def submit(self, requests: Sequence[Request], deliver: Deliver) -> Callable[[], None]:
        self.salts += [request.salt for request in requests]
        stop = threading.Event()
        thread = threading.Thread(target=self._answer, args=(requests, deliver, stop), daemon=True)
        thread.start()
        return stop.set

    def close(self) -> None:
        self.hold.clear()

    def _answer(self, requests: Sequence[Request], deliver: Deliver, stop: threading.Event) -> None:
        with self._lock:
            self.running += len(requests)
            self.most = max(self.most, self.running)
        left = dict(enumerate(requests))
        made = 0
        while left and not stop.is_set():
            if self.broken:
                deliver(EngineError("the engine broke"))
                break
            if self.hold.is_set():
                time.sleep(0.002)
                continue
            made += 1
            for number, request in list(left.items()):
                is_last = made >= request.sampling.max_tokens
                self.tokens += 1
                if is_last:
                    del left[number]
                    with self._lock:
                        self.running -= 1
                deliver(Piece(number, 65, "a ", "length" if is_last else None, None, 3 if made == 1 else 0))
            time.sleep(self.pause)
        with self._lock:
            self.running -= len(left)
            self.cancelled += len(left) if stop.is_set() else 0


Answer = tuple[int, dict[str, str], bytes]


def ask(
    port: int, path: str, body: Any = None, headers: dict[str, str] | None = None, method: str | None = None
) -> Answer:
    """One request on a connection of its own: status, headers, body. POST with a body, else GET."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=300)
    try:
        raw = body if isinstance(body, bytes) or body is None else json.dumps(body).encode()
        sent = {"host": "localhost", **({"content-type": "application/json"} if raw is not None else {})}
        connection.request(method or ("GET" if raw is None else "POST"), path, raw, {**sent, **(headers or {})})
        answer = connection.getresponse()
        return answer.status, {name.lower(): value for name, value in answer.getheaders()}, answer.read()
    finally:
        connection.close()


def samples(text: bytes) -> dict[tuple[str, ...], float]:
    """What /metrics tells, by name and label values, as Prometheus's own parser reads it."""
    return {
        (sample.name, *sample.labels.values()): sample.value
        for family in text_string_to_metric_families(text.decode())
        for sample in family.samples
    }


@dataclass
class Guarded:
    """A server that runs; `lines` are those of its log."""

    port: int
    guard: Guard
    stream: io.StringIO

    @property
    def lines(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.stream.getvalue().splitlines()]

    def requests(self) -> list[dict[str, Any]]:
        """The lines of requests for work."""
        return [line for line in self.lines if line["event"] == "request" and line.get("method") == "POST"]

    def connect(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.port), timeout=300)

    def ask(
        self, path: str, body: Any = None, headers: dict[str, str] | None = None, method: str | None = None
    ) -> Answer:
        return ask(self.port, path, body, headers, method)

    def metrics(self) -> dict[tuple[str, ...], float]:
        return samples(self.ask("/metrics")[2])

    def is_free(self) -> bool:
        """Whether nothing runs and nothing waits."""
        guard = self.guard
        return not (guard.admission.running or guard.admission.waiting or guard.lifecycle.busy)


def eventually(condition: Callable[[], bool], what: str = "it") -> None:
    """Wait until something is so; fails after minutes, which is for machines that are busy with other things."""
    deadline = time.monotonic() + 300
    while not condition():
        assert time.monotonic() < deadline, f"{what} did not come about"
        time.sleep(0.005)


@cache
def prompting() -> Prompting:
    """A policy without weights."""
    return Prompting(ModelInfo("policy", STEERLM, "chatml", "Be brief."), renderer("chatml", "chatml"))


def guarded_app(engine: Engine, guard: Guard, **state: Any) -> FastAPI:
    """The whole application over an engine, with everything that stands around it."""
    app = create_app(
        ServerState(prompting(), engine, "tiny", admission=guard.admission, scoring=guard.scoring, **state)
    )
    guard.around(app)
    return app


def make_guard(stream: TextIO, **settings: Any) -> Guard:
    chosen = GuardSettings(**settings)
    return Guard(chosen, RequestLog(stream, chosen.log_contents))


def serve_process(ready: Path, log: Path, pause: float, settings: dict[str, Any]) -> None:
    """A server as a process of its own; its port is written into `ready`, its log into `log`."""
    engine = ScriptedEngine(pause=pause)
    with log.open("a") as stream, listen("127.0.0.1", 0) as listener:
        guard = make_guard(stream, **settings)
        app = guarded_app(engine, guard)
        aside = ready.with_suffix(".new")
        aside.write_text(str(listener.getsockname()[1]))
        aside.rename(ready)
        make_server(app, guard, engine, (1,), None).run([listener])
        guard.close()


class LengthScorer:
    """An attribute model that finds in an answer as much of everything as it has characters, each a token.

    `scoring` counts how often it was asked.
    """

    model = SimpleNamespace(schema=STEERLM)

    def __init__(self) -> None:
        self.hold = threading.Event()
        """While it is set one pack after another is read."""
        self.scoring = 0

    def fit(self, conversation: Conversation, only: Collection[int] | None = None) -> Fitted:
        segments = [
            Segment(
                ids=(0,) * len(message.text),
                spans=(Span("user" if message.role == "user" else "response", len(message.text)),),
                parent=-1 if message.parent is None else message.parent,
                message=number,
                shared=len(message.text),
                weight=float(message.role == "assistant" and (only is None or number in only)),
            )
            for number, message in enumerate(conversation.messages)
        ]
        tree = TokenTree(conversation.id, tuple(segments))
        return Fitted(conversation.id, [tree], Report(tokens=tree.size), set())

    def score_fitted(self, fitted: Sequence[Fitted], watch: Callable[[Pack], None]) -> Scored:
        self.scoring += 1

        def is_read() -> bool:
            watch(lay_out([]))
            return not self.hold.is_set()

        eventually(is_read, "leave to score")
        trees = [tree for part in fitted for tree in part.trees]
        found = [[tree.segments[index] for index in tree.active] for tree in trees]
        values = [{item.message: dict.fromkeys(STEERLM.names, float(len(item.ids))) for item in row} for row in found]
        return Scored(values, Report())


@contextmanager
def guarded(
    engine: Engine, limits: ServerLimits | None = None, scorer: LengthScorer | None = None, **settings: Any
) -> Iterator[Guarded]:
    """A server on a port of this machine, ready unless its engine is broken; at the end nothing of it is left."""
    stream = io.StringIO()
    guard = make_guard(stream, **settings)
    judge = Judge(cast(Scorer, scorer), "judge") if scorer else None
    app = guarded_app(engine, guard, limits=limits or ServerLimits(), judge=judge)
    with listen("127.0.0.1", 0) as listener:
        # Connections have the buffer of their listener: a small one fills soon.
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 16 * 1024)
        server = make_server(app, guard, engine, (1,), judge)
        thread = threading.Thread(target=server.run, args=([listener],), daemon=True)
        thread.start()
        try:
            eventually(lambda: server.started, "the start")
            if not getattr(engine, "broken", False):
                eventually(lambda: guard.lifecycle.phase == "ready", "readiness")
            yield Guarded(listener.getsockname()[1], guard, stream)
        finally:
            server.should_exit = True
            thread.join(timeout=300)
            guard.close()
            if judge is not None:
                judge.close()
            assert not thread.is_alive()


HELLO = {"messages": [{"role": "user", "content": "Hello"}]}


def code_of(body: bytes) -> str:
    """The code of an error, which must have OpenAI's form."""
    record = json.loads(body)
    assert record.keys() == {"error"}
    assert record["error"].keys() == {"message", "type", "param", "code"}
    assert isinstance(record["error"]["message"], str)
    return str(record["error"]["code"])
