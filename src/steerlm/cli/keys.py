"""`steerlm keys create|list|revoke`: who may use a server, and how much."""

from __future__ import annotations

import json
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

from cyclopts import App, Parameter
from rich.console import Console
from rich.table import Table
from rich.text import Text

from steerlm.server.database import open_database
from steerlm.server.keys import Key, Limits, create_key, list_keys, revoke_key

DEFAULT_FILE = Path("keys.sqlite")

keys_app = App(name="keys", help="Make, list and revoke the API keys of a server.")


@keys_app.command(name="create")
def create_command(
    name: str,
    *,
    file: Path = DEFAULT_FILE,
    requests_per_minute: int | None = None,
    quota_requests: int | None = None,
    quota_tokens: int | None = None,
    window_days: float = 30.0,
    json_: Annotated[bool, Parameter(name="--json", negative=())] = False,
) -> None:
    """Make an API key. It is shown this once; the file holds what recognises it, not the key.

    steerlm keys create my-app --requests-per-minute 60 --quota-requests 10000 --window-days 30

    A server that runs knows it at once: steerlm serve MODEL --keys FILE.

    Parameters
    ----------
    name
        What the key is called in lists and logs.
    file
        File of keys and of what they have used; it is made where it is missing.
    requests_per_minute
        Most requests a minute; without it, no limit.
    quota_requests
        Most requests in a window; without it, no limit.
    quota_tokens
        Most tokens read and written in a window; without it, no limit.
    window_days
        Length of the window, which begins with the key's first request.
    json_
        Print JSON.
    """
    limits = Limits(requests_per_minute, quota_requests, quota_tokens, window_days)
    connection = open_database(file, create=True)
    try:
        key, secret = create_key(connection, name, limits)
    finally:
        connection.close()
    if json_:
        print(json.dumps({**asdict(key), "secret": secret}))
        return
    print(secret)
    console = Console(stderr=True, soft_wrap=True)
    console.print(f"made key {key.id} for {name} in {file}; it will not be shown again", highlight=False, markup=False)


@keys_app.command(name="list")
def list_command(
    *, file: Path = DEFAULT_FILE, json_: Annotated[bool, Parameter(name="--json", negative=())] = False
) -> None:
    """List the API keys of a file with their limits.

    Parameters
    ----------
    file
        File of keys.
    json_
        Print JSON.
    """
    connection = open_database(file)
    try:
        found = list_keys(connection)
    finally:
        connection.close()
    if json_:
        print(json.dumps([asdict(key) for key in found], indent=2))
        return
    table = Table("id", "name", "a minute", "requests", "tokens", "window", "made", "revoked")
    for key in found:
        table.add_row(*map(Text, _row(key)))
    Console().print(table)


@keys_app.command(name="revoke")
def revoke_command(name: str, *, file: Path = DEFAULT_FILE) -> None:
    """End an API key: a server that runs refuses it from its next request on.

    Parameters
    ----------
    name
        Name or id of the key.
    file
        File of keys.
    """
    connection = open_database(file)
    try:
        key = revoke_key(connection, name)
    finally:
        connection.close()
    Console(stderr=True, soft_wrap=True).print(f"revoked {key.name} ({key.id})", highlight=False, markup=False)


def _row(key: Key) -> list[str]:
    limits = key.limits
    counts = (limits.requests_per_minute, limits.quota_requests, limits.quota_tokens)
    return [
        key.id,
        key.name,
        *("-" if count is None else str(count) for count in counts),
        f"{limits.window_days:g} days",
        _day(key.created),
        "" if key.revoked is None else _day(key.revoked),
    ]


def _day(when: float) -> str:
    return datetime.fromtimestamp(when, UTC).date().isoformat()
