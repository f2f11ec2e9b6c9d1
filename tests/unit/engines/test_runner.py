"""The runner over a core that says what it is told: ends, cancellation, failure, closing."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import threading
from collections.abc import Iterator, Sequence

import pytest

from steerlm.conversation import Conversation, Message
from steerlm.engines import Piece, Request, Sampling, batch, complete, stream, stream_async
from steerlm.engines.runner import Runner, Token
from steerlm.errors import ConfigError, EngineError, SteerLMError
from tiny import renderer

RENDERER = renderer("chatml", "chatml")
END = RENDERER.stop_ids[0]
TIMEOUT = 20


def ids(text: str) -> tuple[int, ...]:
    return tuple(RENDERER.tokenizer(text, add_special_tokens=False)["input_ids"])


class Script:
    """A core that answers every prompt with itself, over and over; it waits for `go` before each step."""

    context = guided_context = 1000
    vocabulary = len(RENDERER.tokenizer)

    def __init__(self, waits: bool = False) -> None:
        self.going: dict[int, tuple[Request, int]] = {}
        self.dropped: list[int] = []
        self.kept: list[int] = []
        self.added: list[int] = []
        self.failure: BaseException | None = None
        self.closed = False
        self.stepped = threading.Semaphore(0)
        self.go = threading.Semaphore(0 if waits else 1 << 20)

    def check(self, request: Request) -> None:
        if request.guidance:
            raise ConfigError("no guidance here")

    def add(self, requests: Sequence[tuple[int, Request]]) -> None:
        self.added += [key for key, _ in requests]
        self.going.update({key: (request, 0) for key, request in requests})

    def drop(self, key: int, keep: bool = True) -> None:
        if self.going.pop(key, None):
            self.dropped.append(key)
            self.kept += [key] * keep

    def step(self) -> list[Token]:
        self.stepped.release()
        assert self.go.acquire(timeout=TIMEOUT)
        if self.failure:
            raise self.failure
        made = [Token(key, r.prompt[count % len(r.prompt)]) for key, (r, count) in self.going.items()]
        self.going = {key: (r, count + 1) for key, (r, count) in self.going.items()}
        return made

    def close(self) -> None:
        assert not self.closed
        self.closed = True


class Heard:
    """A receiver that remembers, and lets a test wait for the last."""

    def __init__(self) -> None:
        self.pieces: list[Piece] = []
        self.errors: list[SteerLMError] = []
        self.over = threading.Event()

    def __call__(self, piece: Piece | SteerLMError) -> None:
        if isinstance(piece, SteerLMError):
            self.errors.append(piece)
            self.over.set()
        else:
            self.pieces.append(piece)
            if piece.finish:
                self.over.set()


@pytest.fixture
def core() -> Script:
    return Script()


@pytest.fixture
def engine(core: Script) -> Iterator[Runner]:
    engine = Runner(core, RENDERER)
    yield engine
    core.go.release(1 << 20)
    engine.close()


def test_ends(engine: Runner, core: Script) -> None:
    long, ended = ids("one two "), (*ids("the sea"), END)
    answers = complete(engine, batch([long, ended], Sampling(max_tokens=9)))
    assert [(answer.finish, answer.tokens) for answer in answers] == [("length", (long * 9)[:9]), ("stop", ended)]
    assert answers[1].text == "the sea"
    stopped = complete(engine, batch([ids("one two three ")], Sampling(max_tokens=40, stop=("o th",))))[0]
    assert (stopped.text, stopped.finish) == ("one tw", "stop")
    assert not core.going


def test_pieces_join_to_the_text(engine: Runner) -> None:
    pieces = list(stream(engine, batch([(*ids("naïve café 🙂 in one"), END)], Sampling(max_tokens=99))))
    assert "".join(piece.text for piece in pieces) == "naïve café 🙂 in one"
    assert [piece.finish for piece in pieces] == [None] * (len(pieces) - 1) + ["stop"]


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        (Request(()), "empty prompt"),
        (Request((1,), Sampling(max_tokens=1000)), r"a prompt of 1 tokens and 1000 to generate exceed .* 1000"),
        (Request((1, 10**9)), "outside the model's vocabulary"),
        (Request((1, -1), Sampling(max_tokens=4)), "outside the model's vocabulary"),
    ],
)
def test_refused_at_once(engine: Runner, request_: Request, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        engine.submit([request_], lambda piece: None)


def test_min_tokens_needs_an_end_signal_of_one_token(core: Script) -> None:
    spelled = Runner(core, renderer("gpt2", "nemo", "plain"))
    with pytest.raises(ConfigError, match="min_tokens"):
        spelled.submit([Request((1,), Sampling(max_tokens=4, min_tokens=2))], lambda piece: None)


@pytest.mark.parametrize(("tokenizer", "dialect"), [("gpt2", "nemo"), ("llama2", "chatml"), ("metaspace", "llama3")])
def test_an_end_signal_that_is_spelled_out_ends_an_answer(core: Script, tokenizer: str, dialect: str) -> None:
    """The core writes what a policy learns to write: the answer, and the tokens that spell its end."""
    spelled = renderer(tokenizer, dialect, "plain")
    talk = Conversation("talk", (Message("user", "one"), Message("assistant", "two", 0)))
    segment = spelled.tree(talk, "policy").segments[-1]
    core.vocabulary = len(spelled.tokenizer)
    prompt = tuple(segment.ids[place] for place in segment.trained())
    [answer] = complete(Runner(core, spelled), batch([prompt], Sampling(max_tokens=40)))
    assert (answer.text.strip(), answer.finish) == ("two", "stop")


def test_cancelled_before_and_while_running() -> None:
    core = Script(waits=True)
    engine = Runner(core, RENDERER)
    first, second, third = Heard(), Heard(), Heard()
    cancel_first = engine.submit(batch([ids("one "), ids("two ")], Sampling(max_tokens=50)), first)
    assert core.stepped.acquire(timeout=TIMEOUT)
    # These arrive while the core computes; one is cancelled before the core hears of it.
    engine.submit(batch([ids("three ")], Sampling(max_tokens=50)), third)
    engine.submit(batch([ids("four ")], Sampling(max_tokens=50)), second)()
    cancel_first()
    heard = len(first.pieces)
    core.go.release(1 << 20)
    assert third.over.wait(TIMEOUT)
    engine.close()
    assert len(first.pieces) == heard
    assert not second.pieces
    assert core.added == [0, 1, 2]
    assert sorted(core.dropped) == [0, 1, 2]
    cancel_first()  # once more does no harm


def test_leaving_a_stream_cancels(engine: Runner, core: Script) -> None:
    for piece in stream(engine, batch([ids("one "), ids("two ")], Sampling(max_tokens=99))):
        if piece.request == 1:
            break
    assert complete(engine, batch([ids("three ")], Sampling(max_tokens=3)))[0].finish == "length"
    engine.close()
    assert sorted(core.dropped) == [0, 1, 2]


def test_stream_async(engine: Runner, core: Script) -> None:
    async def gather() -> list[list[str]]:
        async def one(text: str) -> list[str]:
            return [
                piece.text async for piece in stream_async(engine, batch([(*ids(text), END)], Sampling(max_tokens=20)))
            ]

        return await asyncio.gather(one("one two"), one("three"))

    assert ["".join(parts) for parts in asyncio.run(gather())] == ["one two", "three"]


def test_a_core_that_fails(engine: Runner, core: Script) -> None:
    core.failure = ValueError("out of paper")
    with pytest.raises(EngineError, match="generation failed: ValueError: out of paper") as caught:
        complete(engine, batch([ids("one "), ids("two ")], Sampling()))
    assert caught.value.public == "generation failed; try again later"
    assert core.dropped == [0, 1]
    assert not core.kept
    core.failure = None
    assert complete(engine, batch([ids("one ")], Sampling(max_tokens=2)))[0].finish == "length"


class Unprintable(BaseException):
    def __str__(self) -> str:
        raise self


def test_a_core_that_fails_at_dropping_too(monkeypatch: pytest.MonkeyPatch) -> None:
    def drop(key: int, keep: bool = True) -> None:
        raise Unprintable

    core = Script(waits=True)
    core.failure = Unprintable()
    monkeypatch.setattr(core, "drop", drop)
    engine, heard = Runner(core, RENDERER), [Heard(), Heard()]
    for each in heard:
        engine.submit(batch([ids("one ")], Sampling()), each)
    core.go.release(1 << 20)
    for each in heard:
        assert each.over.wait(TIMEOUT)
    engine.close()
    assert [len(each.errors) for each in heard] == [1, 1]


def test_one_error_a_submission(core: Script) -> None:
    core.failure = ValueError("out of paper")
    heard = Heard()
    engine = Runner(core, RENDERER)
    engine.submit(batch([ids("one "), ids("two ")], Sampling()), heard)
    assert heard.over.wait(TIMEOUT)
    engine.close()
    assert len(heard.errors) == 1


def test_a_receiver_that_fails_harms_nobody_else(core: Script, caplog: pytest.LogCaptureFixture) -> None:
    def fail(piece: Piece | SteerLMError) -> None:
        raise ValueError("deaf")

    engine, heard = Runner(core, RENDERER), Heard()
    engine.submit(batch([ids("one "), ids("two ")], Sampling(max_tokens=30)), fail)
    engine.submit(batch([ids("three ")], Sampling(max_tokens=30)), heard)
    assert heard.over.wait(TIMEOUT)
    engine.close()
    assert len(heard.pieces) == 30
    assert sum("deaf" in str(record.exc_info) for record in caplog.records) == 1
    assert sorted(core.dropped) == [0, 1, 2]


def test_a_receiver_that_fails_where_nothing_can_be_logged(core: Script, monkeypatch: pytest.MonkeyPatch) -> None:
    """As where the stream of the log is closed."""

    def fail(*_: object, **__: object) -> None:
        raise ValueError("I/O operation on closed file")

    monkeypatch.setattr(logging.Logger, "log", fail)
    monkeypatch.setattr(logging.Logger, "exception", fail)
    core.go = threading.Semaphore(0)
    engine, heard = Runner(core, RENDERER), Heard()
    engine.submit(batch([ids("one ")], Sampling(max_tokens=30)), fail)
    engine.submit(batch([ids("two ")], Sampling(max_tokens=30)), heard)
    core.go.release(1 << 20)
    assert heard.over.wait(TIMEOUT)
    engine.close()
    assert len(heard.pieces) == 30


def test_an_abandoned_stream_is_collected_amid_a_submission(core: Script) -> None:
    """The collector runs its `finally` in any thread that allocates, so also in one that holds the engine's lock."""
    engine, heard = Runner(core, RENDERER), Heard()
    cancel = engine.submit(batch([ids("one ")], Sampling(max_tokens=1)), Heard())

    class Collected(list[Request]):
        def __iter__(self) -> Iterator[Request]:
            cancel()
            return super().__iter__()

    requests = Collected(batch([ids("two ")], Sampling(max_tokens=2)))
    threading.Thread(target=engine.submit, args=(requests, heard), daemon=True).start()
    assert heard.over.wait(TIMEOUT)


def test_closed(core: Script) -> None:
    core.go = threading.Semaphore(0)
    engine, heard = Runner(core, RENDERER), Heard()
    engine.submit(batch([ids("one ")], Sampling(max_tokens=30)), heard)
    assert core.stepped.acquire(timeout=TIMEOUT)
    engine.submit(batch([ids("two ")], Sampling(max_tokens=30)), heard)
    closing = threading.Thread(target=engine.close)
    closing.start()
    core.go.release(1 << 20)
    closing.join(TIMEOUT)
    assert [str(error) for error in heard.errors] == ["the engine was closed"] * 2
    assert core.closed
    with pytest.raises(EngineError, match="has been closed"):
        engine.submit(batch([ids("one ")], Sampling()), heard)
    engine.close()


def test_closed_by_a_receiver(core: Script) -> None:
    engine, over = Runner(core, RENDERER), threading.Event()

    def close(piece: Piece | SteerLMError) -> None:
        if isinstance(piece, SteerLMError):
            over.set()
        else:
            engine.close()

    engine.submit(batch([ids("one ")], Sampling(max_tokens=30)), close)
    assert over.wait(TIMEOUT)


@pytest.fixture
def ctrl_c() -> Iterator[None]:
    """Ctrl-C raises `KeyboardInterrupt`, also where the tests were started in the background."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("ctrl_c")
def test_a_close_that_was_interrupted_is_waited_for_again() -> None:
    core = Script(waits=True)
    engine, heard = Runner(core, RENDERER), Heard()
    engine.submit(batch([ids("one ")], Sampling(max_tokens=30)), heard)
    assert core.stepped.acquire(timeout=TIMEOUT)
    with pytest.raises(KeyboardInterrupt):  # noqa: PT012, a late timer must not interrupt the tests
        threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGINT)).start()
        engine.close()
    assert not core.closed
    threading.Timer(0.2, core.go.release, (1 << 20,)).start()
    engine.close()
    assert core.closed
    assert [str(error) for error in heard.errors] == ["the engine was closed"]


@pytest.mark.parametrize("failure", [asyncio.CancelledError(), KeyboardInterrupt()])
def test_what_is_no_exception_ends_the_answers_only(engine: Runner, core: Script, failure: BaseException) -> None:
    """Such as a panic in Rust."""
    core.failure = failure
    with pytest.raises(EngineError, match="generation failed"):
        complete(engine, batch([ids("one ")], Sampling()))
    core.failure = None
    assert complete(engine, batch([ids("one ")], Sampling(max_tokens=2)))[0].finish == "length"


def test_a_thread_that_cannot_start(engine: Runner, core: Script, monkeypatch: pytest.MonkeyPatch) -> None:
    def start(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patched:
        patched.setattr(threading.Thread, "start", start)
        with pytest.raises(RuntimeError, match="new thread"):
            engine.submit(batch([ids("one ")], Sampling(max_tokens=2)), Heard())
    assert complete(engine, batch([ids("two ")], Sampling(max_tokens=2)))[0].finish == "length"
    assert core.added == [1]


def test_ctrl_c_between_the_start_of_the_thread_and_the_note_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    core, starts, late = Script(waits=True), threading.Thread.start, []

    def start(thread: threading.Thread) -> None:
        late.append(thread)
        raise KeyboardInterrupt

    engine, heard = Runner(core, RENDERER), [Heard(), Heard()]
    with monkeypatch.context() as patched:
        patched.setattr(threading.Thread, "start", start)
        with pytest.raises(KeyboardInterrupt):
            engine.submit(batch([ids("one ")], Sampling()), Heard())
    engine.submit(batch([ids("two ")], Sampling(max_tokens=2)), heard[0])
    assert core.stepped.acquire(timeout=TIMEOUT)
    before = [thread.name for thread in threading.enumerate()].count("steerlm-engine")
    starts(late[0])
    late[0].join(TIMEOUT)
    engine.submit(batch([ids("three ")], Sampling(max_tokens=2)), heard[1])
    assert [thread.name for thread in threading.enumerate()].count("steerlm-engine") == before
    core.go.release(1 << 20)
    for each in heard:
        assert each.over.wait(TIMEOUT)
    engine.close()
    assert core.added == [1, 2]
