"""What Prometheus is told of the times and tokens of answers."""

from __future__ import annotations

import json
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from guarded import HELLO, ScriptedEngine, eventually, guarded, samples
from steerlm.server.admission import Admission
from steerlm.server.logs import Entry
from steerlm.server.metrics import Metrics

CHAT = "/v1/chat/completions"


def test_times_and_tokens_of_requests_are_added_up() -> None:
    """Times count by sequence, but those in the queue by request; one that generated nothing has none of them."""
    metrics = Metrics(Admission(1, 1), Admission(1, 1))
    metrics.request(Entry("a", "GET", status=200))
    metrics.request(Entry("b", "POST", status=200, sequences=1, prompt_tokens=7, first_token=[0.25]))
    two = {"first_token": [0.5, 2.0], "per_token": [0.004, 0.25], "prompt_tokens": 9, "cached_tokens": 4}
    metrics.request(Entry("c", "POST", status=200, sequences=2, waited=1.5, completion_tokens=6, **two))
    told = samples(metrics.text())
    assert [told[f"steerlm_{name}_tokens_total",] for name in ("prompt", "cached_prompt", "completion")] == [16, 4, 6]
    expected = {
        "queue": (2, 1.5, {"0.0": 1, "1.0": 1, "2.5": 2}),
        "time_to_first_token": (3, 2.75, {"0.1": 0, "0.25": 1, "0.5": 2, "1.0": 2, "2.5": 3}),
        "time_per_output_token": (2, 0.254, {"0.0025": 0, "0.005": 1, "0.2": 1, "0.5": 2}),
    }
    for name, (count, total, buckets) in expected.items():
        name = f"steerlm_{name}_seconds"
        assert told[f"{name}_count",] == count
        assert told[f"{name}_sum",] == pytest.approx(total)
        assert {most: told[f"{name}_bucket", most] for most in buckets} == buckets


def test_plain_and_streamed_answers_are_timed_alike() -> None:
    """To the engine of this test three tokens of each prompt are known already."""
    engine = ScriptedEngine(pause=0.02)
    with guarded(engine) as server:
        body = {**HELLO, "max_tokens": 3}
        usage = json.loads(server.ask(CHAT, {**body, "n": 2})[2])["usage"]
        assert server.ask(CHAT, {**body, "max_tokens": 2, "stream": True})[2].count(b'"content":"a ') == 2
        assert server.ask(CHAT, {**body, "max_tokens": 1})[0] == 200
        eventually(lambda: len(server.requests()) == 3)
        told = server.metrics()
        assert told["steerlm_prompt_tokens_total",] == 3 * usage["prompt_tokens"]
        assert told["steerlm_cached_prompt_tokens_total",] == 3 * 3
        assert told["steerlm_completion_tokens_total",] == 2 * 3 + 2 + 1
        assert told["steerlm_queue_seconds_count",] == told["steerlm_queue_seconds_bucket", "0.0"] == 3
        assert told["steerlm_time_to_first_token_seconds_count",] == 4
        # Nothing is between the tokens of an answer of one.
        assert told["steerlm_time_per_output_token_seconds_count",] == 3
        assert told["steerlm_time_per_output_token_seconds_sum",] >= 3 * engine.pause
        shown = [line["first_token_seconds"] for line in server.requests()]
        assert told["steerlm_time_to_first_token_seconds_sum",] >= sum(shown) - 1e-5


def test_time_in_the_queue_is_none_of_that_to_the_first_token() -> None:
    engine, held = ScriptedEngine(), 0.5
    with guarded(engine, running=1) as server, ThreadPoolExecutor(2) as clients:
        engine.hold.set()
        asked = []
        for waiting in (0, 1):
            asked.append(clients.submit(server.ask, CHAT, {**HELLO, "max_tokens": 1}))
            eventually(lambda waiting=waiting: (engine.running, server.guard.admission.waiting) == (1, waiting))
        time.sleep(held)
        engine.hold.clear()
        assert [answer.result()[0] for answer in asked] == [200, 200]
        eventually(lambda: len(server.requests()) == 2)
        told = server.metrics()
        assert told["steerlm_queue_seconds_count",] == 2
        assert told["steerlm_queue_seconds_bucket", "0.0"] == 1
        [waited] = [line for line in server.requests() if line["queue_seconds"]]
        assert told["steerlm_queue_seconds_sum",] == pytest.approx(waited["queue_seconds"], abs=1e-5)
        assert waited["queue_seconds"] >= held
        assert waited["queue_seconds"] + waited["first_token_seconds"] <= waited["seconds"] + 1e-5
        first = sum(line["first_token_seconds"] for line in server.requests())
        assert told["steerlm_time_to_first_token_seconds_sum",] == pytest.approx(first, abs=1e-5)
