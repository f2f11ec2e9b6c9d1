"""API keys: who may use the server, and how much."""

from __future__ import annotations

import hashlib
import secrets
import sqlite3
import time
from dataclasses import dataclass

from steerlm.errors import ConfigError
from steerlm.server.database import transaction

PREFIX = "sk-steerlm-"


@dataclass(frozen=True, slots=True)
class Limits:
    """What a key may use; None is no limit. Quotas hold for a window that begins with its first request."""

    requests_per_minute: int | None = None
    quota_requests: int | None = None
    quota_tokens: int | None = None
    window_days: float = 30.0

    def __post_init__(self) -> None:
        for name in ("requests_per_minute", "quota_requests", "quota_tokens"):
            value = getattr(self, name)
            if value is not None and not 1 <= value < 2**62:
                raise ConfigError(f"{name}={value} must be at least 1; leave it out for no limit")
        if not 0 < self.window_days <= 3660:
            raise ConfigError(f"window_days={self.window_days} must be above 0 and at most 3660")


@dataclass(frozen=True, slots=True)
class Key:
    """A key without its secret. `id` is random and may be shown; times are seconds since 1970."""

    id: str
    name: str
    limits: Limits
    created: float
    revoked: float | None = None


_COLUMNS = "id, name, requests_per_minute, quota_requests, quota_tokens, window_days, created, revoked"


def _key(row: tuple[str, str, int | None, int | None, int | None, float, float, float | None]) -> Key:
    return Key(row[0], row[1], Limits(*row[2:6]), row[6], row[7])


def _digest(secret: str) -> bytes:
    """What is kept of a secret. It has 256 random bits, which nobody can try out: salt and a slow hash, made for what
    people choose as passwords, would only slow every request.
    """
    return hashlib.sha256(secret.encode("utf-8", "surrogatepass")).digest()


def create_key(connection: sqlite3.Connection, name: str, limits: Limits) -> tuple[Key, str]:
    """A new key and its secret, which is kept nowhere. Raises `ConfigError` where the name is taken."""
    if not name.isprintable() or not 1 <= len(name.strip()) <= 100:
        raise ConfigError(f"the name of a key must have 1 to 100 printable characters, unlike {name[:100]!r}")
    secret = PREFIX + secrets.token_urlsafe(32)
    key = Key(secrets.token_hex(6), name, limits, time.time())
    values = (limits.requests_per_minute, limits.quota_requests, limits.quota_tokens, limits.window_days)
    try:
        with transaction(connection):
            connection.execute(
                "INSERT INTO keys (id, name, digest, requests_per_minute, quota_requests, quota_tokens, window_days,"
                " created) VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
                (key.id, name, _digest(secret), *values, key.created),
            )
    except sqlite3.IntegrityError as error:
        raise ConfigError(f"there is a key named {name!r} already; take another name") from error
    return key, secret


def find_key(connection: sqlite3.Connection, secret: str) -> Key | None:
    """The key with this secret, unless it has been revoked.

    It is found by its digest. How long a search takes may depend on how much of a digest is alike, yet who knows a
    digest does not know the secret: what an attacker can time tells nothing about a key.
    """
    row = connection.execute(
        f"SELECT {_COLUMNS} FROM keys WHERE digest = ? AND revoked IS NULL", (_digest(secret),)
    ).fetchone()
    return None if row is None else _key(row)


def list_keys(connection: sqlite3.Connection) -> list[Key]:
    """All keys, the oldest first."""
    return [_key(row) for row in connection.execute(f"SELECT {_COLUMNS} FROM keys ORDER BY created")]


def revoke_key(connection: sqlite3.Connection, name: str) -> Key:
    """End a key, by its name or id: its next request is refused. Raises `ConfigError` for one that is not there."""
    with transaction(connection):
        row = connection.execute(f"SELECT {_COLUMNS} FROM keys WHERE name = ? OR id = ?", (name, name)).fetchone()
        if row is None:
            raise ConfigError(f"there is no key {name!r}; see steerlm keys list")
        key = _key(row)
        if key.revoked is None:
            connection.execute("UPDATE keys SET revoked = ? WHERE id = ?", (time.time(), key.id))
    return key
