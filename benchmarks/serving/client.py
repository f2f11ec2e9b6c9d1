"""A client of any OpenAI-compatible server, and what it sees."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import httpx2 as httpx


@dataclass(frozen=True, slots=True)
class Seen:
    """One answer as its client saw it.

    status         of HTTP
    seconds        from the request to the end of the answer
    first_seconds  to the first text
    tokens         as the server counts them
    cached         tokens of the prompt that the server did not compute again
    """

    status: int
    seconds: float
    first_seconds: float
    tokens: int
    cached: int = 0


def session(url: str) -> httpx.AsyncClient:
    """Connections to a server: as many as are wanted, and no time limit."""
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=None)
    return httpx.AsyncClient(base_url=url, limits=limits, timeout=None, trust_env=False)


async def ask(client: httpx.AsyncClient, body: dict[str, Any]) -> Seen:
    """Stream one chat completion to its end."""
    began = time.perf_counter()
    first = None
    usage: dict[str, Any] = {}
    whole = {**body, "stream": True, "stream_options": {"include_usage": True}}
    async with client.stream("POST", "/v1/chat/completions", json=whole) as response:
        async for line in response.aiter_lines():
            if not line.startswith("data: {"):
                continue
            event = json.loads(line[6:])
            if first is None and any(choice["delta"].get("content") for choice in event.get("choices", ())):
                first = time.perf_counter()
            usage = event.get("usage") or usage
    ended = time.perf_counter()
    cached = (usage.get("prompt_tokens_details") or {}).get("cached_tokens") or 0
    return Seen(
        response.status_code, ended - began, (first or ended) - began, usage.get("completion_tokens", 0), cached
    )


async def ask_all(client: httpx.AsyncClient, bodies: Sequence[dict[str, Any]]) -> tuple[float, list[Seen]]:
    """Ask everything at once; returns the seconds until the last answer has ended, and what was seen."""
    began = time.perf_counter()
    seen = await asyncio.gather(*(ask(client, body) for body in bodies))
    return time.perf_counter() - began, list(seen)


async def post(client: httpx.AsyncClient, path: str, body: dict[str, Any]) -> tuple[float, dict[str, Any]]:
    """Send a request that is answered in one piece; returns seconds and the answer."""
    began = time.perf_counter()
    response = await client.post(path, json=body)
    response.raise_for_status()
    return time.perf_counter() - began, response.json()
