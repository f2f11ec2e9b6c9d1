"""How much of its limits a key has used: counted in SQLite, so that restarts and several processes change nothing.

Requests per minute are a token bucket, kept as the one time at which it is full again (the generic cell rate
algorithm of ATM switches). Quotas count in a window that begins with the first request after the last one ended.
"""

from __future__ import annotations

import math
import sqlite3
import time
from collections.abc import Callable
from dataclasses import dataclass

from steerlm.server.database import transaction
from steerlm.server.keys import Key, Limits
from steerlm.server.refusals import RefusedError

_MINUTE = 60.0
_DAY = 86400.0


@dataclass(frozen=True, slots=True)
class Usage:
    """What a key has used by `now`: the seconds until its bucket is full again, and the counts of its window."""

    now: float
    until_full: float = 0.0
    window_start: float = 0.0
    requests: int = 0
    tokens: int = 0

    def headers(self, limits: Limits) -> dict[str, str]:
        """What clients are told: limits, what is left, and after how long all of it is there again."""
        told: dict[str, str] = {}
        if limits.requests_per_minute is not None:
            free = math.floor((_MINUTE - self.until_full) * limits.requests_per_minute / _MINUTE + 1e-6)
            told |= _told("requests", limits.requests_per_minute, free, self.until_full)
        ends = max(0.0, self.window_start + limits.window_days * _DAY - self.now)
        if limits.quota_requests is not None:
            told |= _told("quota-requests", limits.quota_requests, limits.quota_requests - self.requests, ends)
        if limits.quota_tokens is not None:
            told |= _told("quota-tokens", limits.quota_tokens, limits.quota_tokens - self.tokens, ends)
        return told


def _told(what: str, limit: int, left: int, reset: float) -> dict[str, str]:
    return {
        f"x-ratelimit-limit-{what}": str(limit),
        f"x-ratelimit-remaining-{what}": str(max(0, left)),
        f"x-ratelimit-reset-{what}": f"{reset:.3f}s",
    }


class Quotas:
    """Takes requests from the limits of keys."""

    def __init__(self, connection: sqlite3.Connection, clock: Callable[[], float] = time.time) -> None:
        self._connection = connection
        self._clock = clock

    def usage(self, key: Key) -> Usage:
        """What the key has used until now. It is consistent within a transaction only."""
        # The clock is read after the lock was got: what another process wrote before is not in its future.
        now = self._clock()
        row = self._connection.execute(
            "SELECT full_until, window_start, requests, tokens FROM usage WHERE key = ?", (key.id,)
        ).fetchone()
        if row is None:
            return Usage(now, 0.0, now)
        full_until, start, requests, tokens = row
        # Written too far ahead: the clock was put back. It is forgotten, so that nobody is locked out.
        until_full = max(0.0, full_until - now)
        if until_full > 2 * _MINUTE:
            until_full = 0.0
        if abs(now - start) >= key.limits.window_days * _DAY:
            return Usage(now, until_full, now)
        return Usage(now, until_full, start, requests, tokens)

    def take(self, key: Key) -> Usage:
        """Count a request. Raises `RefusedError` (429), and counts nothing, where a limit has been reached."""
        limits = key.limits
        with transaction(self._connection):
            used = self.usage(key)
            every = _MINUTE / limits.requests_per_minute if limits.requests_per_minute else 0.0
            until_full = used.until_full + every
            if until_full > _MINUTE + 1e-6:
                raise self._refusal(key, used, "rate_limit_exceeded", until_full - _MINUTE)
            ends = used.window_start + limits.window_days * _DAY - used.now
            if limits.quota_requests is not None and used.requests >= limits.quota_requests:
                raise self._refusal(key, used, "insufficient_quota", ends)
            if limits.quota_tokens is not None and used.tokens >= limits.quota_tokens:
                raise self._refusal(key, used, "insufficient_quota", ends)
            taken = Usage(used.now, until_full, used.window_start, used.requests + 1, used.tokens)
            self._write(key, taken)
        return taken

    def settle(
        self, key: Key, taken: Usage, tokens: int, give_back: bool = False, give_back_rate: bool = False
    ) -> None:
        """Charge the tokens of a request that was taken; `give_back` takes it out of the count again.

        A token quota is checked before and charged after, since nobody knows the length of an answer: what is under
        way when it is used up is still answered.
        """
        limits = key.limits
        with transaction(self._connection):
            used = self.usage(key)
            # What belonged to a window that has ended is nobody's concern any more.
            same = used.window_start == taken.window_start
            every = _MINUTE / limits.requests_per_minute if limits.requests_per_minute and give_back_rate else 0.0
            self._write(
                key,
                Usage(
                    used.now,
                    max(0.0, used.until_full - every),
                    used.window_start,
                    max(0, used.requests - (same and give_back)),
                    used.tokens + (tokens if same else 0),
                ),
            )

    def _write(self, key: Key, usage: Usage) -> None:
        self._connection.execute(
            "INSERT INTO usage (key, full_until, window_start, requests, tokens) VALUES (?, ?, ?, ?, ?)"
            " ON CONFLICT (key) DO UPDATE SET full_until = excluded.full_until, window_start = excluded.window_start,"
            " requests = excluded.requests, tokens = excluded.tokens",
            (key.id, usage.now + usage.until_full, usage.window_start, usage.requests, usage.tokens),
        )

    @staticmethod
    def _refusal(key: Key, used: Usage, code: str, after: float) -> RefusedError:
        limits = key.limits
        if code == "rate_limit_exceeded":
            told = f"this key may send {limits.requests_per_minute} requests a minute; try again in {after:.1f} seconds"
        else:
            quotas = {"requests": limits.quota_requests, "tokens": limits.quota_tokens}
            named = " and ".join(f"{limit} {what}" for what, limit in quotas.items() if limit is not None)
            told = (
                f"the quota of this key, {named} in {limits.window_days:g} days, is used up; a new window begins in "
                f"{after / 3600:.1f} hours"
            )
        return RefusedError(429, told, code, retry_after=after, headers=used.headers(limits))
