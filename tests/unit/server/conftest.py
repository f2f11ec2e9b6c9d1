"""Fixtures of the API's tests: one policy, one attribute model, and calls of a server in this process."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import httpx2
import pytest

from served import judge_of, make_judge, make_policy, make_state, send
from steerlm.models.load import SteerModel
from steerlm.server.judge import Judge
from steerlm.server.state import ServerState


@pytest.fixture(scope="session")
def served_policy(tmp_path_factory: pytest.TempPathFactory) -> SteerModel:
    return make_policy(tmp_path_factory.mktemp("served"))


@pytest.fixture(scope="session")
def served_judge(tmp_path_factory: pytest.TempPathFactory) -> SteerModel:
    return make_judge(tmp_path_factory.mktemp("served"))


@pytest.fixture
def judge(served_judge: SteerModel) -> Iterator[Judge]:
    made = judge_of(served_judge)
    yield made
    made.close()


@pytest.fixture
def serve(served_policy: SteerModel, judge: Judge) -> Iterator[Callable[..., ServerState]]:
    """Makes states of a server with an attribute model: `serve(policy=..., limits=...)`."""
    made: list[ServerState] = []

    def make(**changes: Any) -> ServerState:
        made.append(make_state(served_policy, **{"judge": judge, **changes}))
        return made[-1]

    yield make
    for state in made:
        state.engine.close()


@pytest.fixture
def state(serve: Callable[..., ServerState]) -> ServerState:
    return serve()


@pytest.fixture
def post(state: ServerState) -> Callable[..., httpx2.Response]:
    """Sends a request to a plain server: `post(path, body)`."""
    return lambda path, body=None, **how: send(state, path, body, **how)
