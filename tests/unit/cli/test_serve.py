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


def test_as_many_rows_are_computed_as_answers_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With guidance each takes two."""

    class _LoadedError(Exception):
        pass

    asked: list[Any] = []

    def loaded(*arguments: Any) -> None:
        asked.extend(signature(make_engine).bind(*arguments).arguments.items())
        raise _LoadedError

    make_policy(tmp_path)
    monkeypatch.setattr(engines, "make_engine", loaded)
    with pytest.raises(_LoadedError):
        serve_command(tmp_path / "policy", port=0, guard=GuardSettings(running=48))
    assert ("max_batch", 96) in asked


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
