"""What the server says of itself: models, attributes, and its OpenAPI document."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest

from served import PRESETS, Recorder, send
from steerlm.attributes import STEERLM
from steerlm.server.app import create_app
from steerlm.server.policy import OperatorPolicy
from steerlm.server.state import ServerState

POLICY = OperatorPolicy.model_validate({"presets": PRESETS, "attributes": {"toxicity": {"locked": 0}}})
Serve = Callable[..., ServerState]


def test_presets_are_models(serve: Serve) -> None:
    state = serve(policy=POLICY)
    listed = send(state, "/v1/models").json()["data"]
    assert [item["id"] for item in listed] == ["tiny", "tiny:concise", "tiny:free"]
    for item in listed:
        assert send(state, f"/v1/models/{item['id']}").json() == item
    defaults = {item["name"]: item["default"] for item in listed[1]["capabilities"]["attributes"]}
    assert defaults == {**STEERLM.defaults, **PRESETS["concise"]}
    assert send(state, "/v1/models/tiny:nope").json()["error"]["code"] == "model_not_found"
    assert send(state, "/v1/models/%ff").status_code == 404


def test_what_a_client_needs_for_its_sliders(serve: Serve) -> None:
    found = send(serve(policy=POLICY), "/v1/attributes").json()
    assert [item["name"] for item in found["attributes"]] == list(STEERLM.names)
    assert found["measured"] == list(STEERLM.names)
    assert found["presets"] == PRESETS
    assert (found["guidance"], found["verified"], found["system"]) == (False, True, "free")
    assert send(serve(judge=None), "/v1/attributes").json()["verified"] is False


def test_other_paths_and_methods(serve: Serve) -> None:
    state = serve(engine=Recorder())
    assert send(state, "/v1/none").json()["error"]["type"] == "invalid_request_error"
    assert send(state, "/v1/chat/completions").status_code == 405


@pytest.fixture
def document(serve: Serve) -> dict[str, Any]:
    found: dict[str, Any] = create_app(serve(engine=Recorder())).openapi()
    return found


def test_every_reference_of_the_document_is_in_it(document: dict[str, Any]) -> None:
    named = set(re.findall(r"'#/components/schemas/([^']+)'", str(document)))
    assert named <= set(document["components"]["schemas"])
    assert {"ChatChunk", "ResponseEvent", "TextCompletion"} <= named


def test_everything_in_the_document_is_described(document: dict[str, Any]) -> None:
    routes = [route for path in document["paths"].values() for route in path.values()]
    assert len(routes) >= 9
    for route in routes:
        assert route["description"]
        assert "422" not in route["responses"]
        assert {"200", "4XX", "5XX"} <= set(route["responses"])
    for path, route in ((path, item.get("post")) for path, item in document["paths"].items()):
        if route:
            assert "requestBody" in route, path
    for name, schema in document["components"]["schemas"].items():
        assert schema.get("description"), name
    request = document["components"]["schemas"]["ChatRequest"]
    assert request["additionalProperties"] is False
    assert request["properties"]["attributes"]["description"]
