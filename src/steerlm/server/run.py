"""A server from its first token to its orderly end."""

from __future__ import annotations

import asyncio
import errno
import os
import socket
from types import FrameType

import uvicorn
from fastapi import FastAPI

from steerlm.engines.base import Engine
from steerlm.errors import ConfigError
from steerlm.server.guard import Guard
from steerlm.server.health import warm_up
from steerlm.server.judge import Judge
from steerlm.server.protocol import BoundedProtocol

_HIGHEST_PORT = 65535


class Server(uvicorn.Server):
    """uvicorn's server, which goes on answering while it stops: not ready, no new work, until all is done.

    The first SIGTERM or Ctrl-C begins that, a second one ends the process at once.
    """

    def __init__(
        self, config: uvicorn.Config, guard: Guard, engine: Engine, prompt: tuple[int, ...], judge: Judge | None
    ) -> None:
        super().__init__(config)
        self._judge = judge
        self._guard = guard
        self._engine = engine
        self._prompt = prompt
        self._warming: asyncio.Task[None] | None = None

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        guard = self._guard
        self._warming = asyncio.create_task(warm_up(self._engine, self._prompt, guard.lifecycle, guard.log))

    async def on_tick(self, counter: int) -> bool:
        if self._guard.lifecycle.is_over(self._guard.settings.drain_seconds):
            self.should_exit = True
        return await super().on_tick(counter)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        if self._warming is not None:
            self._warming.cancel()
        self._guard.log.event("stopping", unfinished=self._guard.lifecycle.busy)
        if self._judge is not None:
            self._judge.stop()
        await super().shutdown(sockets)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        if self._guard.lifecycle.phase == "stopping":
            # What is on the disk is whole at any moment, so that there is nothing to wait for.
            os._exit(128 + sig)
        self._guard.lifecycle.stop()


def listen(host: str, port: int) -> socket.socket:
    """A socket that takes connections; port 0 is any that is free. Raises `ConfigError` where none can be had."""
    if not 0 <= port <= _HIGHEST_PORT:
        raise ConfigError(f"--port {port}: must be from 0 (any that is free) to {_HIGHEST_PORT}")
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        return socket.create_server(address[:2], family=family, backlog=1024)
    except UnicodeError as error:  # what cannot be written as a name of the network
        raise ConfigError(f"--host {host}: {error}; choose another --host") from error
    except OSError as error:
        todo = (
            "stop what listens there, or choose another --port (0 is any that is free)"
            if error.errno == errno.EADDRINUSE
            else "choose another --host or --port"
        )
        raise ConfigError(f"--host {host} --port {port}: {error.strerror}; {todo}") from error


def make_server(app: FastAPI, guard: Guard, engine: Engine, prompt: tuple[int, ...], judge: Judge | None) -> Server:
    """A server to `run` on sockets. `prompt` is what the engine answers a first token to before the server is ready."""
    config = uvicorn.Config(
        app,
        http=BoundedProtocol,
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        proxy_headers=False,
        server_header=False,
        timeout_graceful_shutdown=1,
    )
    return Server(config, guard, engine, prompt, judge)
