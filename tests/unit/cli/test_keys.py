"""`steerlm keys`: what it makes lets in, what it lists holds no secret, what it revokes is over."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from steerlm.cli.main import run
from steerlm.server.database import open_database
from steerlm.server.keys import find_key


def test_create_list_revoke(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "keys.sqlite"
    limits = ["--requests-per-minute", "60", "--quota-requests", "10000", "--window-days", "7"]
    assert run(["keys", "create", "my app", "--file", str(file), *limits]) == 0
    secret = capsys.readouterr().out.strip()
    assert run(["keys", "create", "other", "--file", str(file), "--json"]) == 0
    other = json.loads(capsys.readouterr().out)
    database = open_database(file)
    found = find_key(database, secret)
    assert found is not None
    assert (found.name, found.limits.requests_per_minute, found.limits.quota_requests) == ("my app", 60, 10_000)
    assert (found.limits.quota_tokens, found.limits.window_days) == (None, 7)

    assert run(["keys", "list", "--file", str(file), "--json"]) == 0
    shown = capsys.readouterr().out
    assert [item["name"] for item in json.loads(shown)] == ["my app", "other"]
    assert secret not in shown
    assert other["secret"] not in shown

    assert run(["keys", "revoke", "my app", "--file", str(file)]) == 0
    assert find_key(database, secret) is None
    assert find_key(database, other["secret"]) is not None
    assert run(["keys", "list", "--file", str(file)]) == 0
    assert "10000" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["create", "a", "--quota-requests", "0"], "quota_requests=0"),
        (["revoke", "nobody"], "no such file"),
        (["list"], "steerlm keys create"),
    ],
)
def test_bad_input_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str], told: str) -> None:
    assert run(["keys", *words, "--file", str(tmp_path / "keys.sqlite")]) == 2
    assert told in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
