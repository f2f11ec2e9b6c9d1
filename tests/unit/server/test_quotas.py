"""Limits of keys, against a slow model of them, across restarts, threads, processes and kills."""

from __future__ import annotations

import multiprocessing
import os
import random
import signal
import sqlite3
from collections.abc import Callable
from pathlib import Path

import pytest

from quota_takers import hammer, hammer_in_process, take_and_tell
from steerlm.server.database import open_database
from steerlm.server.keys import Key, Limits, create_key
from steerlm.server.quotas import Quotas
from steerlm.server.refusals import RefusedError

DAY = 86400.0


class Clock:
    def __init__(self, now: float = 1_000_000.0) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now


def make(tmp_path: Path, limits: Limits) -> tuple[Quotas, Key, Clock, sqlite3.Connection]:
    database = open_database(tmp_path / "keys.sqlite", create=True)
    clock = Clock()
    return Quotas(database, clock), create_key(database, "app", limits)[0], clock, database


def refused(take: Callable[[], object]) -> RefusedError:
    with pytest.raises(RefusedError) as caught:
        take()
    assert caught.value.status == 429
    return caught.value


def test_requests_per_minute_are_a_bucket_that_refills_evenly(tmp_path: Path) -> None:
    quotas, key, clock, _ = make(tmp_path, Limits(requests_per_minute=6))
    remaining = [quotas.take(key).headers(key.limits)["x-ratelimit-remaining-requests"] for _ in range(6)]
    assert remaining == ["5", "4", "3", "2", "1", "0"]
    told = refused(lambda: quotas.take(key))
    assert (told.detail.code, told.headers["retry-after"]) == ("rate_limit_exceeded", "10")
    assert told.headers["x-ratelimit-reset-requests"] == "60.000s"
    clock.now += 9.5
    assert refused(lambda: quotas.take(key)).headers["retry-after"] == "1"
    clock.now += 0.5
    quotas.take(key)
    refused(lambda: quotas.take(key))


def test_the_rate_equals_a_bucket_that_is_simulated(tmp_path: Path) -> None:
    """A float that holds tokens, refilled before every request, against the one stored time."""
    rate = 7
    quotas, key, clock, _ = make(tmp_path, Limits(requests_per_minute=rate))
    generator = random.Random(3)
    tokens, last, outcomes = float(rate), clock.now, []
    for _ in range(400):
        clock.now += generator.choice([0.0, 0.25, 1.0, 4.5, 9.0, 30.0])
        tokens, last = min(rate, tokens + (clock.now - last) * rate / 60), clock.now
        expected = tokens >= 1 - 1e-6
        tokens -= expected
        try:
            quotas.take(key)
            outcomes.append(True)
        except RefusedError:
            outcomes.append(False)
        assert outcomes[-1] == expected
    assert 50 < sum(outcomes) < 350


def test_a_quota_holds_for_its_window_and_refusals_do_not_count(tmp_path: Path) -> None:
    quotas, key, clock, database = make(tmp_path, Limits(quota_requests=3, window_days=30))
    start = clock.now
    for second in range(3):
        clock.now = start + second * DAY
        quotas.take(key)
    told = [refused(lambda: quotas.take(key)) for _ in range(5)][-1]
    assert told.detail.code == "insufficient_quota"
    assert told.headers["retry-after"] == str(int(28 * DAY))
    assert told.headers["x-ratelimit-remaining-quota-requests"] == "0"
    assert "3 requests in 30 days" in str(told)
    assert database.execute("SELECT requests FROM usage").fetchone() == (3,)
    clock.now = start + 30 * DAY - 1
    refused(lambda: quotas.take(key))
    clock.now = start + 30 * DAY
    assert quotas.take(key).requests == 1


def test_what_broke_is_given_back(tmp_path: Path) -> None:
    quotas, key, clock, _ = make(tmp_path, Limits(requests_per_minute=2, quota_requests=2))
    for _ in range(10):
        quotas.settle(key, quotas.take(key), tokens=0, give_back=True, give_back_rate=True)
    kept = quotas.take(key)
    quotas.settle(key, kept, tokens=5)
    quotas.take(key)
    assert refused(lambda: quotas.take(key)).detail.code == "rate_limit_exceeded"
    clock.now += 60
    assert refused(lambda: quotas.take(key)).detail.code == "insufficient_quota"


def test_a_token_quota_is_charged_when_the_answer_is_known(tmp_path: Path) -> None:
    quotas, key, clock, _ = make(tmp_path, Limits(quota_tokens=100, window_days=1))
    first, second = quotas.take(key), quotas.take(key)
    quotas.settle(key, first, tokens=99)
    assert quotas.take(key).headers(key.limits)["x-ratelimit-remaining-quota-tokens"] == "1"
    quotas.settle(key, second, tokens=50)
    assert "100 tokens in 1 days" in str(refused(lambda: quotas.take(key)))
    clock.now += DAY
    late = quotas.take(key)
    quotas.settle(key, first, tokens=1000)
    assert quotas.usage(key).tokens == 0
    quotas.settle(key, late, tokens=7)
    assert quotas.usage(key).tokens == 7


@pytest.mark.parametrize("back", [0.001, 1.0, 3600.0, 400 * DAY])
def test_a_clock_put_back_locks_nobody_out_and_keeps_the_window(tmp_path: Path, back: float) -> None:
    quotas, key, clock, _ = make(tmp_path, Limits(requests_per_minute=1, quota_requests=2, window_days=30))
    quotas.take(key)
    clock.now -= back
    if back < 60:
        assert float(refused(lambda: quotas.take(key)).headers["retry-after"]) <= 120
        clock.now += 60 + back
    assert quotas.take(key).requests == (1 if back > 30 * DAY else 2)


def test_limits_of_one_key_are_not_those_of_another(tmp_path: Path) -> None:
    quotas, key, _, database = make(tmp_path, Limits(quota_requests=1))
    other, _ = create_key(database, "other", Limits(quota_requests=1))
    quotas.take(key)
    quotas.take(other)
    refused(lambda: quotas.take(key))


def test_a_quota_is_exact_under_threads_of_two_processes(tmp_path: Path) -> None:
    path = tmp_path / "keys.sqlite"
    key, _ = create_key(open_database(path, create=True), "app", Limits(quota_requests=100))
    context = multiprocessing.get_context("spawn")
    processes = [context.Process(target=hammer_in_process, args=(path, key, tmp_path / f"found-{i}")) for i in range(2)]
    for process in processes:
        process.start()
    ours = hammer(path, key, tries=40, threads=2)
    for process in processes:
        process.join(timeout=120)
        assert process.exitcode == 0
    assert ours + sum(int((tmp_path / f"found-{i}").read_text()) for i in range(2)) == 100
    assert Quotas(open_database(path)).usage(key).requests == 100


def test_a_kill_loses_no_count(tmp_path: Path) -> None:
    path, log = tmp_path / "keys.sqlite", tmp_path / "log"
    key, _ = create_key(open_database(path, create=True), "app", Limits(quota_requests=10**9))
    log.touch()
    context = multiprocessing.get_context("spawn")
    for round_ in range(1, 3):
        process = context.Process(target=take_and_tell, args=(path, key, log))
        process.start()
        goal = log.stat().st_size + 50
        while log.stat().st_size < goal:
            assert process.is_alive()
        os.kill(process.pid or 0, signal.SIGKILL)
        process.join()
        database = open_database(path)
        assert database.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        counted = Quotas(database).usage(key).requests
        # The process may have died between a count and the telling of it.
        assert log.stat().st_size <= counted <= log.stat().st_size + round_
