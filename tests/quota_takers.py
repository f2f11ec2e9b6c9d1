"""Threads and processes that use up a quota, for tests. They live here because a new process must import them."""

from __future__ import annotations

import threading
from pathlib import Path

from steerlm.server.database import open_database
from steerlm.server.keys import Key
from steerlm.server.quotas import Quotas
from steerlm.server.refusals import RefusedError


def hammer(path: Path, key: Key, tries: int, threads: int) -> int:
    """Take from several threads, each with a connection of its own; returns how many were let through."""
    passed: list[int] = []

    def work() -> None:
        quotas = Quotas(open_database(path))
        for _ in range(tries):
            try:
                quotas.take(key)
            except RefusedError:
                continue
            passed.append(1)

    workers = [threading.Thread(target=work) for _ in range(threads)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    return len(passed)


def hammer_in_process(path: Path, key: Key, found: Path) -> None:
    """As `hammer`; how many were let through is written to a file."""
    found.write_text(str(hammer(path, key, tries=40, threads=4)))


def take_and_tell(path: Path, key: Key, log: Path) -> None:
    """Take until killed; after each, a byte in the log."""
    quotas = Quotas(open_database(path))
    with log.open("ab", buffering=0) as told:
        while True:
            quotas.take(key)
            told.write(b".")
