"""Generation by another server: vLLM, or any with OpenAI's /v1/completions that takes token ids for a prompt."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import AsyncGenerator, Callable, Coroutine, Iterable, Sequence
from contextlib import aclosing, suppress
from typing import Annotated, Any

import httpx2
from pydantic import Field, SecretStr, field_validator

from steerlm.dialects import Renderer
from steerlm.engines.base import Deliver, Piece, Request, check_room
from steerlm.engines.completions_api import (
    Chunk,
    ServedModel,
    read_chunk,
    read_models,
    refusal,
    request_body,
    unknown_fields,
)
from steerlm.engines.upstream_answer import UpstreamAnswer
from steerlm.errors import ConfigError, EngineError, SteerLMError
from steerlm.settings import Settings

log = logging.getLogger(__name__)

Seconds = Annotated[float, Field(gt=0)]
_ERROR_BYTES = 1 << 16


class UpstreamSettings(Settings):
    """The server that generates."""

    url: Annotated[str, Field(pattern=r"^https?://[^/\s@]+(/\S*)?$")]
    """Where it listens, such as http://localhost:8000, with or without /v1."""
    model: str | None = None
    """The name that it knows the policy by. Without one, the first of its /v1/models."""
    api_key: SecretStr | None = None
    """What it wants as a bearer token, if anything."""
    context: Annotated[int, Field(ge=1)] | None = None
    """Most tokens that prompt and answer may have together. Without it, the max_model_len of its /v1/models."""
    connections: Annotated[int, Field(ge=1)] = 256
    """Answers asked for at a time; further ones wait here for their turn."""
    connect_timeout: Seconds = 5.0
    """Longest wait in seconds for a connection."""
    connect_retries: Annotated[int, Field(ge=0)] = 3
    """How often a connection that fails is tried again. Once a request may have been sent it is never repeated."""
    first_token_timeout: Seconds = 300.0
    """Longest wait in seconds for the first token; the server may have a queue."""
    token_timeout: Seconds = 60.0
    """Longest wait in seconds for each later token."""

    @field_validator("url")
    @classmethod
    def _with_version(cls, url: str) -> str:
        url = url.rstrip("/")
        return url if url.endswith("/v1") else f"{url}/v1"


class UpstreamEngine:
    """See `steerlm.engines.base.Engine`. Its connections live in a thread with an event loop of its own.

    Text is made here from the token ids of servers that return them (vLLM), with its stop strings and ends, so that it
    is the same as other engines'; of other servers it is their text, and tokens are -1. The repetition penalty is the
    server's: vLLM's counts the tokens of the prompt too.
    """

    guides = False
    guided_context = 0

    def __init__(self, settings: UpstreamSettings, renderer: Renderer, end_ids: Iterable[int]) -> None:
        """Ask the server for what `settings` leave open.

        Raises `EngineError` where it cannot be reached, `ConfigError` where it lacks the model or does not tell its
        context.
        """
        self._settings = settings
        self._renderer = renderer
        self._end_ids = tuple(sorted(set(end_ids)))
        self._without: set[str] = set()
        self._lock = threading.Lock()
        self._closed = False
        self._started: list[_Submission] = []
        self._runner = asyncio.Runner(loop_factory=asyncio.new_event_loop)
        self._loop = self._runner.get_loop()
        self._closing = asyncio.Event()
        self._turns = asyncio.Semaphore(settings.connections)
        key = settings.api_key
        self._client = httpx2.AsyncClient(
            base_url=f"{settings.url}/",
            headers={"Authorization": f"Bearer {key.get_secret_value()}"} if key else {},
            timeout=httpx2.Timeout(None, connect=settings.connect_timeout),
            # Servers close what has been idle for some seconds (uvicorn: five); ours must be the first to let go.
            limits=httpx2.Limits(max_keepalive_connections=settings.connections, keepalive_expiry=3),
        )
        self._thread = threading.Thread(target=self._work, name="steerlm-upstream", daemon=True)
        self._thread.start()
        try:
            self.model, self.context = asyncio.run_coroutine_threadsafe(self._look_up(), self._loop).result()
        except BaseException:
            self.close()
            raise

    def submit(self, requests: Sequence[Request], deliver: Deliver) -> Callable[[], None]:
        for request in requests:
            check_room(request, self.context)
            if request.guidance is not None:
                raise ConfigError("guidance needs the scores of all tokens, which no other server gives; leave it out")
            if request.prompt_logprobs is not None:
                raise ConfigError("log-probabilities of the prompt are not asked of another server; leave echo out")
        submission = _Submission(requests, deliver)
        if not self._soon(self._begin, submission):
            raise EngineError("the engine has been closed")

        def cancel() -> None:
            submission.over = True
            self._soon(submission.stop)

        return cancel

    def close(self) -> None:
        self._soon(self._closing.set, last=True)
        if threading.current_thread() is not self._thread:
            self._thread.join()

    def _soon(self, what: Callable[..., object], *arguments: object, last: bool = False) -> bool:
        """Have the event loop do something, as the last thing it is told to; whether it will, not being closed."""
        with self._lock:
            if self._closed:
                return False
            self._closed = last
            self._loop.call_soon_threadsafe(what, *arguments)
            return True

    def _work(self) -> None:
        with self._runner:
            self._runner.run(self._live())

    async def _live(self) -> None:
        async with self._client:
            await self._closing.wait()
            running = [task for submission in self._started for task in submission.tasks]
            for submission in self._started:
                submission.fail(EngineError("the engine was closed"))
            await asyncio.gather(*running, return_exceptions=True)

    def _begin(self, submission: _Submission) -> None:
        if submission.over or not submission.requests:
            return
        self._started.append(submission)
        for number in range(len(submission.requests)):
            submission.start(self._run(submission, number), self._started.remove)

    async def _run(self, submission: _Submission, number: int) -> None:
        try:
            async with self._turns:
                await self._answer(submission, number)
        except SteerLMError as error:
            submission.fail(error)
        except Exception as error:  # whatever it was, those who wait must be told
            log.debug("generation failed", exc_info=True)
            # Without its message, which may quote an answer.
            submission.fail(EngineError(f"generation failed: {type(error).__name__}", "generation failed"))

    async def _answer(self, submission: _Submission, number: int) -> None:
        request = submission.requests[number]
        answer = UpstreamAnswer(number, request, self._renderer, self._end_ids)
        cached, made = 0, None
        try:
            async with aclosing(self._chunks(request, answer.stop)) as chunks:
                async for chunk in chunks:
                    cached = max(cached, chunk.cached)
                    made = made if chunk.made is None else chunk.made
                    for piece in answer.take(chunk):
                        submission.tell(piece)
                    # Where the end was found here, leaving closes the connection, by which the server stops.
                    if answer.last is not None and not answer.server_ended:
                        break
        except EngineError:
            if answer.last is None:
                raise
        if answer.last is None:
            raise self._fault("ended an answer before its end; see its log")
        submission.tell(answer.last._replace(cached=cached, untold=answer.untold(made)))

    async def _chunks(self, request: Request, stop: Sequence[str]) -> AsyncGenerator[Chunk]:
        """The chunks of one answer. Raises `EngineError` where the server fails or is silent for too long."""
        which, limit = "first", self._settings.first_token_timeout
        async with aclosing(self._events(request, stop)) as events:
            while True:
                try:
                    async with asyncio.timeout(limit):
                        data = await anext(events, None)
                except TimeoutError as error:
                    raise self._fault(
                        f"did not send the {which} token within {limit:g} s; it may be overloaded"
                    ) from error
                if data == "[DONE]":
                    # A connection can be used again only after the very end of what came by it.
                    with suppress(TimeoutError):
                        async with asyncio.timeout(1):
                            await anext(events, None)
                    return
                if data is None:
                    return
                yield read_chunk(data, request.sampling.logprobs)
                which, limit = "next", self._settings.token_timeout

    async def _events(self, request: Request, stop: Sequence[str]) -> AsyncGenerator[str]:
        """The data of each server-sent event of one answer; the connection is closed with the generator."""
        response = await self._open(request, stop)
        try:
            async with aclosing(aiter(httpx2.EventSource(response))) as events:  # type: ignore[type-var]
                async for event in events:
                    yield event.data
        except httpx2.HTTPError as error:
            raise self._fault("broke the connection", error) from error
        finally:
            await response.aclose()

    def _fault(self, what: str, error: Exception | None = None) -> EngineError:
        """What the server did. Its address, and what may hold it, is not for users."""
        reason = f": {_words(error)}" if error else ""
        return EngineError(f"{self._settings.url} {what}{reason}", f"the server that generates {what}")

    def _refusal(self, response: httpx2.Response, said: bytes) -> SteerLMError:
        return refusal(response.status_code, said, self._settings.url, response.headers.get("retry-after"))

    async def _open(self, request: Request, stop: Sequence[str]) -> httpx2.Response:
        """Send a request; once more, without them, where optional fields are unknown (nothing was generated then).

        They are left out from then on if that was all that was wrong.
        """
        without = set(self._without)
        while True:
            body = request_body(request, self.model, stop, self._end_ids, without)
            response = await self._send("POST", "completions", body)
            if response.status_code == 200:
                self._without |= without
                return response
            said = await _whole(response)
            unknown = unknown_fields(response.status_code, said) & body.keys()
            if not unknown:
                raise self._refusal(response, said)
            without |= unknown

    async def _send(self, method: str, path: str, body: object = None) -> httpx2.Response:
        """Send a request and wait for the head of the answer; tried again only where no connection came about."""
        attempt = 0
        while True:
            try:
                return await self._client.send(self._client.build_request(method, path, json=body), stream=True)
            except (httpx2.ConnectError, httpx2.ConnectTimeout) as error:
                if attempt == self._settings.connect_retries:
                    raise EngineError(
                        f"cannot connect to {self._settings.url}: {_words(error)}; is the server running?",
                        "the server that generates does not answer",
                    ) from error
            except httpx2.HTTPError as error:
                raise self._fault("broke the connection", error) from error
            attempt += 1
            await asyncio.sleep(0.1 * 2**attempt)

    async def _look_up(self) -> tuple[str, int]:
        """The name of the model and its context, from the settings or from the server."""
        settings = self._settings
        if settings.model is not None and settings.context is not None:
            return settings.model, settings.context
        try:
            async with asyncio.timeout(settings.first_token_timeout):
                response = await self._send("GET", "models")
                said = await _whole(response)
        except TimeoutError as error:
            raise EngineError(f"{settings.url}/models did not answer in {settings.first_token_timeout:g} s") from error
        if response.status_code != 200:
            raise self._refusal(response, said)
        model = _choose(read_models(said), settings)
        context = settings.context or model.max_model_len
        if context is None:
            raise ConfigError(f"{settings.url}/models does not tell the context of {model.id!r}; give it")
        return model.id, context


class _Submission:
    """Requests that were submitted together. All but `over` is used in the event loop only."""

    def __init__(self, requests: Sequence[Request], deliver: Deliver) -> None:
        self.requests = requests
        self.over = False
        self.tasks: set[asyncio.Task[None]] = set()
        self._deliver = deliver

    def start(self, work: Coroutine[Any, Any, None], when_empty: Callable[[_Submission], None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self.tasks.add(task)

        def done(task: asyncio.Task[None]) -> None:
            self.tasks.discard(task)
            if not self.tasks:
                when_empty(self)

        task.add_done_callback(done)

    def tell(self, piece: Piece) -> None:
        if not self.over:
            self._deliver(piece)

    def fail(self, error: SteerLMError) -> None:
        """Deliver an error, the last thing that is delivered, and stop the other answers."""
        if not self.over:
            self.over = True
            self._deliver(error)
        self.stop()

    def stop(self) -> None:
        for task in self.tasks:
            if task is not asyncio.current_task():
                task.cancel()


def _choose(served: Sequence[ServedModel], settings: UpstreamSettings) -> ServedModel:
    if not served:
        raise ConfigError(f"{settings.url} serves no model")
    found = next((model for model in served if settings.model in (None, model.id)), None)
    if found is None:
        names = ", ".join(model.id for model in served)
        raise ConfigError(f"{settings.url} serves no model {settings.model!r}; it has {names}")
    return found


async def _whole(response: httpx2.Response) -> bytes:
    """What an answer that is no stream says, up to a limit."""
    said = b""
    try:
        async for data in response.aiter_bytes():
            said += data
            if len(said) > _ERROR_BYTES:
                break
    except httpx2.HTTPError as error:
        public = "the server that generates broke the connection"
        raise EngineError(f"the connection broke: {_words(error)}", public) from error
    finally:
        await response.aclose()
    return said


def _words(error: Exception) -> str:
    words = str(error)
    if isinstance(error, httpx2.RemoteProtocolError):  # what was received, text of answers maybe, is behind a colon
        words = words.partition(":")[0]
    return words or type(error).__name__
