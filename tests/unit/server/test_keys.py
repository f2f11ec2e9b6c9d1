"""API keys: made, found by their secret only, revoked; what is on the disk does not let anybody in."""

from __future__ import annotations

import base64
import sqlite3
import stat
from pathlib import Path

import pytest

from steerlm.errors import ConfigError
from steerlm.server.database import open_database
from steerlm.server.keys import PREFIX, Limits, create_key, find_key, list_keys, revoke_key


def test_a_key_is_found_by_its_secret_until_it_is_revoked(tmp_path: Path) -> None:
    database = open_database(tmp_path / "keys.sqlite", create=True)
    key, secret = create_key(database, "app", Limits(60, 10_000, None, 30))
    other, _ = create_key(database, "other", Limits())
    assert find_key(database, secret) == key
    for wrong in ("", PREFIX, secret[:-1], secret + "A", secret.upper(), key.id, "app", "\ud800", "' OR 1=1 --"):
        assert find_key(database, wrong) is None
    assert revoke_key(database, "app") == key
    assert find_key(database, secret) is None
    assert [item.name for item in list_keys(database)] == ["app", "other"]
    assert [item.revoked is None for item in list_keys(database)] == [False, True]
    assert revoke_key(database, other.id).name == "other"
    with pytest.raises(ConfigError, match="there is no key 'nobody'"):
        revoke_key(database, "nobody")


def test_a_secret_has_256_bits_and_is_nowhere_on_the_disk(tmp_path: Path) -> None:
    path = tmp_path / "keys.sqlite"
    database = open_database(path, create=True)
    secrets = [create_key(database, f"key {i}", Limits())[1] for i in range(20)]
    assert {len(base64.urlsafe_b64decode(secret.removeprefix(PREFIX) + "=")) for secret in secrets} == {32}
    database.close()
    stored = b"".join(file.read_bytes() for file in tmp_path.iterdir())
    assert b"key 19" in stored
    for secret in secrets:
        assert secret.removeprefix(PREFIX).encode() not in stored
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_keys_outlive_the_process_that_made_them(tmp_path: Path) -> None:
    path = tmp_path / "keys.sqlite"
    first = open_database(path, create=True)
    key, secret = create_key(first, "app", Limits(1, 2, 3, 0.5))
    first.close()
    assert find_key(open_database(path), secret) == key


def test_what_is_refused(tmp_path: Path) -> None:
    database = open_database(tmp_path / "keys.sqlite", create=True)
    create_key(database, "app", Limits())
    for name, told in (("app", "already"), ("", "1 to 100"), ("a\nb", "printable"), ("x" * 101, "1 to 100")):
        with pytest.raises(ConfigError, match=told):
            create_key(database, name, Limits())
    for bad in ({"requests_per_minute": 0}, {"quota_requests": -1}, {"quota_tokens": 0}, {"window_days": 0}):
        with pytest.raises(ConfigError, match=next(iter(bad))):
            Limits(**bad)
    with pytest.raises(ConfigError, match="steerlm keys create"):
        open_database(tmp_path / "missing.sqlite")
    (tmp_path / "text").write_text("not a database, and longer than a header of SQLite could be" * 10)
    with pytest.raises(ConfigError, match="not a file of API keys"):
        open_database(tmp_path / "text")


def test_a_database_of_something_else_stays_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "shop.sqlite"
    shop = sqlite3.connect(path)
    shop.execute("CREATE TABLE orders (id INTEGER)")
    shop.commit()
    shop.close()
    before = path.read_bytes()
    for create in (False, True):
        with pytest.raises(ConfigError, match="a database of something else"):
            open_database(path, create)
    assert path.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == ["shop.sqlite"]
