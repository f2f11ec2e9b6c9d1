"""The SQLite file of keys and what they have used: it survives kills, and several processes may share it."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from steerlm.errors import ConfigError

_VERSION = 1
_APPLICATION = 0x5354454C  # "STEL", in the file's head, which tells our files from those of other programs
_WAIT_S = 10.0
_TABLES = """
CREATE TABLE keys (
    id TEXT PRIMARY KEY,
    name TEXT NOT NULL UNIQUE,
    digest BLOB NOT NULL UNIQUE,
    requests_per_minute INTEGER,
    quota_requests INTEGER,
    quota_tokens INTEGER,
    window_days REAL NOT NULL,
    created REAL NOT NULL,
    revoked REAL
) STRICT;
CREATE TABLE usage (
    key TEXT PRIMARY KEY REFERENCES keys (id),
    full_until REAL NOT NULL,
    window_start REAL NOT NULL,
    requests INTEGER NOT NULL,
    tokens INTEGER NOT NULL
) STRICT;
"""


def open_database(path: Path, create: bool = False) -> sqlite3.Connection:
    """Open the file; the connection may go from thread to thread but be used by one at a time.

    Raises `ConfigError` where it is missing (unless `create`) or no such file of ours.
    """
    if not create and not path.is_file():
        raise ConfigError(f"{path}: no such file of API keys; make one with: steerlm keys create NAME --file {path}")
    if create and not path.exists():
        # Digests of keys and who uses how much are the operator's alone.
        os.close(os.open(path, os.O_CREAT | os.O_WRONLY, 0o600))
    connection = sqlite3.connect(path, timeout=_WAIT_S, isolation_level=None, check_same_thread=False)
    try:
        with transaction(connection):
            version = _pragma(connection, "user_version")
            if not _is_ours(connection, create):
                raise sqlite3.DatabaseError("it is a database of something else")
            if version == 0:
                connection.execute(f"PRAGMA application_id = {_APPLICATION}")
                for statement in _TABLES.split(";")[:-1]:
                    connection.execute(statement)
                connection.execute(f"PRAGMA user_version = {_VERSION}")
        # With a write-ahead log, NORMAL loses nothing when the process is killed; a power cut may cost the last counts.
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = NORMAL")
        connection.execute("PRAGMA foreign_keys = ON")
    except sqlite3.Error as error:
        connection.close()
        raise ConfigError(f"{path}: not a file of API keys: {error}") from error
    if version not in (0, _VERSION):
        connection.close()
        raise ConfigError(f"{path}: made by another version of steerlm (form {version}, here {_VERSION})")
    return connection


def _is_ours(connection: sqlite3.Connection, create: bool) -> bool:
    """Whether the file has our tables, or has none and is to be given them (`create`)."""
    # Files of the first releases have no application id.
    if _pragma(connection, "application_id") not in (0, _APPLICATION):
        return False
    tables = {name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
    return tables >= {"keys", "usage"} if _pragma(connection, "user_version") else create and not tables


def _pragma(connection: sqlite3.Connection, name: str) -> int:
    return int(connection.execute(f"PRAGMA {name}").fetchone()[0])


@contextmanager
def transaction(connection: sqlite3.Connection) -> Iterator[None]:
    """All or nothing, alone among all processes that write: what is read in it cannot change before it is written."""
    connection.execute("BEGIN IMMEDIATE")
    try:
        yield
    except BaseException:
        connection.execute("ROLLBACK")
        raise
    connection.execute("COMMIT")
