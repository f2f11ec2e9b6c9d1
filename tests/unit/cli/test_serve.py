"""`steerlm serve`: what is wrong with its arguments is said before anything is loaded."""

from __future__ import annotations

import socket
from inspect import signature
from pathlib import Path
from typing import Any

import pytest

from served import make_policy
from steerlm import engines
from steerlm.cli.serve import serve_command
from steerlm.engines import make_engine
from steerlm.errors import ConfigError
from steerlm.server.guard_settings import GuardSettings


@pytest.fixture
def nothing_is_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    def loaded(*_: Any) -> None:
        raise AssertionError("the model was loaded")

    monkeypatch.setattr(engines, "make_engine", loaded)


class _LoadedError(Exception):
    pass


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What an engine is asked for, by the names of the arguments; then it ends with `_LoadedError`."""
    found: dict[str, Any] = {}

    def loaded(*arguments: Any) -> None:
        found.update(signature(make_engine).bind(*arguments).arguments)
        raise _LoadedError

    monkeypatch.setattr(engines, "make_engine", loaded)
    return found


def test_as_many_rows_are_computed_as_answers_run(tmp_path: Path, asked: dict[str, Any]) -> None:
    """With guidance each takes two."""
    make_policy(tmp_path)
    with pytest.raises(_LoadedError):
        serve_command(tmp_path / "policy", port=0, guard=GuardSettings(running=48))
    assert asked["max_batch"] == 96


def test_the_server_behind_is_asked_for_as_many_answers_as_run(tmp_path: Path, asked: dict[str, Any]) -> None:
    make_policy(tmp_path)
    behind: dict[str, Any] = {"engine": "upstream", "upstream": "http://host:8001"}
    with pytest.raises(_LoadedError):
        serve_command(tmp_path / "policy", port=0, guard=GuardSettings(running=600), upstream_next_seconds=90, **behind)
    settings = asked["upstream"]
    assert (settings.connections, settings.first_token_timeout, settings.token_timeout) == (600, 300, 90)


@pytest.mark.usefixtures("nothing_is_loaded")
@pytest.mark.parametrize(
    ("flags", "says"),
    [
        ({"upstream_first_seconds": 5}, "go together"),
        ({"engine": "upstream", "upstream_model": "m"}, "go together"),
        ({"upstream": "http://host"}, "go together"),
        ({"engine": "upstream", "upstream": "http://host", "upstream_next_seconds": 0}, "token_timeout"),
    ],
)
def test_what_makes_no_server_behind(tmp_path: Path, flags: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        serve_command(tmp_path, port=0, **flags)


@pytest.mark.usefixtures("nothing_is_loaded")
def test_a_policy_and_a_port_are_checked_before_the_model_is_loaded(tmp_path: Path) -> None:
    make_policy(tmp_path)
    rules = tmp_path / "rules.yaml"
    rules.write_text("attributes: {wit: {locked: 0}}")
    with pytest.raises(ConfigError, match=r"attributes\.wit: unknown attribute"):
        serve_command(tmp_path / "policy", policy=rules, port=0)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ConfigError, match=rf"--port {port}: .*choose another --port"):
            serve_command(tmp_path / "policy", port=port)
