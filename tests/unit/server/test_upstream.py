"""The upstream engine against our own server, which must give what the engine behind it gives."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

import pytest

from served import listening
from steerlm.engines import Sampling, batch, stream
from steerlm.engines.base import Engine, Piece, Request
from steerlm.engines.upstream import UpstreamEngine, UpstreamSettings
from steerlm.models.load import SteerModel
from steerlm.server.state import ServerState
from steerlm.steering import asked_values, prompt_ids


@pytest.fixture
def both(serve: Callable[..., ServerState], served_policy: SteerModel) -> Iterator[tuple[Engine, Engine]]:
    """The engine of a server, and one that asks that server."""
    state = serve()
    renderer = served_policy.renderer
    with listening(state) as url:
        engine = UpstreamEngine(UpstreamSettings(url=url), renderer, renderer.stop_ids)
        yield state.engine, engine
        engine.close()


def answers(engine: Engine, requests: list[Request]) -> list[list[Piece]]:
    found: list[list[Piece]] = [[] for _ in requests]
    for piece in stream(engine, requests):
        found[piece.request].append(piece)
    return found


@pytest.mark.parametrize(
    "sampling",
    [
        Sampling(max_tokens=12),
        Sampling(max_tokens=12, temperature=0.8, top_p=0.9, top_k=50, seed=3),
        Sampling(max_tokens=12, temperature=1.5, seed=1, logprobs=2, repetition_penalty=1.3, min_tokens=3),
        Sampling(max_tokens=40, stop=("e", "t")),
    ],
)
def test_it_gives_what_the_engine_behind_gives(
    both: tuple[Engine, Engine], served_policy: SteerModel, sampling: Sampling
) -> None:
    values = asked_values(served_policy.schema, {"verbosity": 1})
    prompts = [prompt_ids(served_policy, text, values) for text in ("Why is the sea salty?", "Hello")]
    direct, upstream = (answers(engine, batch(prompts, sampling)) for engine in both)
    for near, far in zip(direct, upstream, strict=True):
        assert "".join(piece.text for piece in far) == "".join(piece.text for piece in near)
        assert [piece.token for piece in far] == [piece.token for piece in near]
        assert far[-1].finish == near[-1].finish
        if sampling.logprobs:
            for there, here in zip(far, near, strict=True):
                if there.logprob is not None and here.logprob is not None:
                    assert there.logprob.logprob == pytest.approx(here.logprob.logprob, abs=1e-4)
                    assert [token for token, _ in there.logprob.top] == [token for token, _ in here.logprob.top]
            assert sum(piece.logprob is not None for piece in far) >= len(near) - 1


def test_it_is_told_the_context(both: tuple[Engine, Engine]) -> None:
    direct, upstream = both
    assert upstream.context == direct.context
    with pytest.raises(Exception, match="context"):
        list(stream(upstream, [Request((5,) * 2040, replace(Sampling(), max_tokens=16))]))
