"""Who may use the server: keys are asked for, and their limits kept, before a body is read."""

from __future__ import annotations

import asyncio
import ipaddress
import re
import sqlite3
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from steerlm.errors import ConfigError
from steerlm.server.database import open_database
from steerlm.server.keys import Key, find_key
from steerlm.server.logs import CLIENT_CLOSED, Entry, current
from steerlm.server.quotas import Quotas, Usage
from steerlm.server.refusals import RefusedError, refuse

T = TypeVar("T")

PUBLIC = frozenset(("/healthz", "/readyz", "/openapi.json", "/docs"))
_ASK = {"www-authenticate": "Bearer"}


def is_loopback(host: str) -> bool:
    """Whether a name or an address, which may have a port, is this machine as seen from itself."""
    # An IPv6 address has several colons, and square brackets where a port follows.
    name = re.sub(r":[0-9]*$", "", host) if host.count(":") == 1 or host.startswith("[") else host
    if name.lower() == "localhost":
        return True
    try:
        return ipaddress.ip_address(name.removeprefix("[").removesuffix("]")).is_loopback
    except ValueError:
        return False


def check_binding(host: str, keys: Path | None, insecure: bool) -> None:
    """Raise `ConfigError` where anybody on the network could use the server."""
    if keys is None and not insecure and not (host and is_loopback(host)):
        raise ConfigError(
            f"--host {host}: without API keys the server is open to all who can reach it; give --keys FILE (steerlm "
            "keys create makes one), or --insecure if that is what you want"
        )


class KeyDesk:
    """The file of keys, used from one thread of its own so that waiting for the disk holds up nobody else."""

    def __init__(self, path: Path) -> None:
        self._connection = open_database(path)
        self._quotas = Quotas(self._connection)
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="steerlm-keys")

    async def admit(self, secret: str | None, counted: bool) -> tuple[Key, Usage | None]:
        """The key with this secret; where `counted`, a request is taken from its limits.

        Raises `RefusedError`: 401 for no key or one that is unknown or revoked, 429 beyond its limits.
        """
        admitting = self._thread.submit(self._admit, secret, counted)
        try:
            return await self._done(admitting)
        except asyncio.CancelledError:
            if not admitting.cancel():
                self._thread.submit(self._give_back, admitting)
            raise

    async def settle(self, key: Key, taken: Usage, entry: Entry) -> None:
        """Charge what a request used; one that was refused or broke is taken out of the quota again, and out of the
        rate unless it was the client's own mistake. The tokens of an answer that broke off were delivered and count.
        """
        ours = entry.broken or entry.status == 429
        free = ours or (entry.status >= 400 and entry.status != CLIENT_CLOSED)
        charged = 200 <= entry.status < 400 or entry.status == CLIENT_CLOSED
        tokens = entry.prompt_tokens + entry.completion_tokens + entry.scored_tokens if charged else 0
        # Whoever is cancelled meanwhile is charged all the same.
        await self._done(
            self._thread.submit(self._quotas.settle, key, taken, tokens, give_back=free, give_back_rate=ours)
        )

    def close(self) -> None:
        """Finish what is being written and close the file."""
        self._thread.shutdown()
        self._connection.close()

    async def _done(self, work: Future[T]) -> T:
        try:
            return await asyncio.shield(asyncio.wrap_future(work))
        except sqlite3.Error as error:
            raise RefusedError(
                503, "the server cannot look up API keys at the moment", "keys_unavailable", retry_after=5
            ) from error

    def _give_back(self, admitting: Future[tuple[Key, Usage | None]]) -> None:
        """Take out of the limits a request that nobody waits for any more; the thread has admitted it or not by now."""
        if admitting.exception() is None:
            key, taken = admitting.result()
            if taken is not None:
                self._quotas.settle(key, taken, 0, give_back=True, give_back_rate=True)

    def _admit(self, secret: str | None, counted: bool) -> tuple[Key, Usage | None]:
        if secret is None:
            raise RefusedError(
                401, "an API key is needed; send it as: Authorization: Bearer KEY", "missing_api_key", headers=_ASK
            )
        key = find_key(self._connection, secret)
        if key is None:
            raise RefusedError(401, "this API key is unknown or has been revoked", "invalid_api_key", headers=_ASK)
        return key, self._quotas.take(key) if counted else None


class Access:
    """Asks for keys where there is a desk for them. Without one the server is open, and answers only requests for this
    very machine by name (unless `anybody`), so that no web page can reach it under a name of its own.

    Only POST counts against limits: looking around is free. What is computed for one key is not taken up again for
    another, unless there is a `shared_cache`.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        desk: KeyDesk | None,
        anybody: bool,
        shared_cache: bool,
    ) -> None:
        self.app = app
        self.desk = desk
        self.anybody = anybody
        self.shared_cache = shared_cache

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        if self.desk is None:
            if self.anybody or is_loopback(headers.get("host", "")):
                await self.app(scope, receive, send)
            else:
                refusal = RefusedError(403, "this server answers to the name localhost only", "bad_host")
                await refuse(refusal, scope, receive, send)
            return
        if scope["path"] in PUBLIC:
            await self.app(scope, receive, send)
            return
        try:
            key, taken = await self.desk.admit(_secret(headers.get("authorization")), scope["method"] == "POST")
        except RefusedError as refusal:
            await refuse(refusal, scope, receive, send)
            return
        await self._with_key(self.desk, key, taken, scope, receive, send)

    async def _with_key(
        self, desk: KeyDesk, key: Key, taken: Usage | None, scope: Scope, receive: Receive, send: Send
    ) -> None:
        entry = current()
        entry.key = key.name
        entry.salt = "" if self.shared_cache else key.id
        told = (
            []
            if taken is None
            else [(name.encode(), text.encode()) for name, text in taken.headers(key.limits).items()]
        )

        async def telling_send(message: Message) -> None:
            if message["type"] == "http.response.start":
                message = {**message, "headers": [*message["headers"], *told]}
            await send(message)

        try:
            await self.app(scope, receive, telling_send)
        except BaseException:
            entry.failed = True
            raise
        finally:
            if taken is not None:
                await desk.settle(key, taken, entry)


def _secret(authorization: str | None) -> str | None:
    scheme, _, secret = (authorization or "").strip().partition(" ")
    return secret.strip() or None if scheme.lower() == "bearer" else None
