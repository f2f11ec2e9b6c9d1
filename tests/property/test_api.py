"""Requests that schemathesis makes up from the OpenAPI document: whatever they are, no answer is a server's fault, and
each has the form that the document promises.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import schemathesis
from hypothesis import given, settings
from schemathesis import Case, GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from guarded import Guarded, LengthScorer, ScriptedEngine, eventually, guarded
from steerlm.server.limits import ServerLimits
from strategies import EXPLORE

CHECKS = [not_a_server_error, status_code_conformance, content_type_conformance, response_schema_conformance]


@pytest.fixture(scope="module")
def server() -> Iterator[Guarded]:
    limits = ServerLimits(answers=4, answer_tokens=16, default_tokens=4)
    with guarded(ScriptedEngine(), limits, scorer=LengthScorer()) as running:
        yield running


@pytest.mark.parametrize("mode", list(GenerationMode), ids=lambda mode: mode.value)
def test_no_request_breaks_the_server(server: Guarded, mode: GenerationMode) -> None:
    schema = schemathesis.openapi.from_url(f"http://localhost:{server.port}/openapi.json")
    tried = set()
    for found in schema.get_all_operations():
        operation = found.ok()
        if operation.method != "post" and mode is GenerationMode.NEGATIVE:
            continue  # nothing in it can be wrong

        @given(operation.as_strategy(generation_mode=mode))
        @settings(max_examples=15 * EXPLORE)
        def answers(case: Case) -> None:
            case.call_and_validate(checks=CHECKS)

        answers()
        tried.add((operation.method.upper(), operation.path))
    posts = ("/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/steer/sweep", "/v1/score", "/pooling")
    assert tried >= {("POST", path) for path in posts}
    assert (("GET", "/v1/models") in tried) == (mode is GenerationMode.POSITIVE)
    eventually(server.is_free)
    assert not any(line["status"] >= 500 or line.get("failed") for line in server.lines if line["event"] == "request")
