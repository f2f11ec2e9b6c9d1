"""Keys and limits over HTTP, against a real server with an engine that only pretends to think."""

from __future__ import annotations

import asyncio
import http.client
import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from guarded import HELLO, LengthScorer, ScriptedEngine, code_of, eventually, guarded
from steerlm.errors import ConfigError
from steerlm.server.access import KeyDesk, check_binding, is_loopback
from steerlm.server.database import open_database
from steerlm.server.keys import Key, Limits, create_key, revoke_key
from steerlm.server.quotas import Quotas

CHAT = "/v1/chat/completions"


@pytest.fixture
def new_key(tmp_path: Path) -> Callable[[str, Limits], tuple[Key, dict[str, str]]]:
    """Makes a key in `keys.sqlite`; returns it with the header that a client sends."""

    def make(name: str, limits: Limits) -> tuple[Key, dict[str, str]]:
        key, secret = create_key(open_database(tmp_path / "keys.sqlite", create=True), name, limits)
        return key, {"authorization": f"Bearer {secret}"}

    return make


NewKey = Callable[[str, Limits], tuple[Key, dict[str, str]]]


def test_the_openapi_document_tells_of_keys_and_headers(tmp_path: Path, new_key: NewKey) -> None:
    """Every header that answers have is in it, and a key is asked for where the document says so."""
    limits = Limits(requests_per_minute=60, quota_requests=1, quota_tokens=1000)
    _, mine = new_key("mine", limits)
    with guarded(ScriptedEngine(), keys=tmp_path / "keys.sqlite") as server:
        document = json.loads(server.ask("/openapi.json")[2])
        assert document["components"]["securitySchemes"] == {"key": {"type": "http", "scheme": "bearer"}}
        assert document["security"] == [{"key": []}]
        for path in ("/healthz", "/readyz", "/metrics", "/v1/models"):
            is_open = document["paths"][path]["get"].get("security") == []
            assert is_open == (server.ask(path)[0] == 200)
        said = document["paths"][CHAT]["post"]["responses"]
        answers = {"200": server.ask(CHAT, {**HELLO, "max_tokens": 1}, mine)}
        answers["4XX"] = server.ask(CHAT, HELLO, mine)
        assert answers["4XX"][0] == 429
        for status, (_, headers, _) in answers.items():
            sent = {name for name in headers if name.startswith("x-") or name == "retry-after"}
            assert sent == set(said[status]["headers"])
        for name in {**said["200"]["headers"], **said["4XX"]["headers"]}:
            assert document["components"]["headers"][name]["description"]
    with guarded(ScriptedEngine()) as server:
        document = json.loads(server.ask("/openapi.json")[2])
        assert "security" not in document
        assert set(document["paths"][CHAT]["post"]["responses"]["4XX"]["headers"]) == {"x-request-id", "retry-after"}


def test_only_who_has_a_key_is_let_in(tmp_path: Path, new_key: NewKey) -> None:
    _, mine = new_key("mine", Limits())
    with guarded(ScriptedEngine(), keys=tmp_path / "keys.sqlite") as server:
        bad = [
            "",
            "Bearer",
            "Bearer ",
            "Basic " + mine["authorization"][7:],
            mine["authorization"] + "x",
            "Bearer \xff",
        ]
        for header in bad:
            for path, body in ((CHAT, HELLO), ("/v1/models", None), ("/metrics", None), ("/v1/nothing", None)):
                status, headers, answer = server.ask(path, body, {"authorization": header})
                assert (status, headers["www-authenticate"]) == (401, "Bearer")
                assert code_of(answer) in ("missing_api_key", "invalid_api_key")
        assert server.guard.admission.running == 0
        assert server.ask(CHAT, {**HELLO, "max_tokens": 2}, mine)[0] == 200
        assert (
            server.ask("/v1/models", None, {"authorization": mine["authorization"].replace("Bearer", "bearer")})[0]
            == 200
        )
        assert [server.ask(path)[0] for path in ("/healthz", "/readyz", "/openapi.json")] == [200, 200, 200]
        revoke_key(open_database(tmp_path / "keys.sqlite"), "mine")
        assert code_of(server.ask(CHAT, HELLO, mine)[2]) == "invalid_api_key"
        shown = server.stream.getvalue()
        assert mine["authorization"][7:] not in shown
        assert {line.get("key") for line in server.requests()} == {None, "mine"}


def test_a_quota_over_http(tmp_path: Path, new_key: NewKey) -> None:
    key, mine = new_key("mine", Limits(requests_per_minute=100, quota_requests=3, window_days=30))
    engine = ScriptedEngine()
    with guarded(engine, keys=tmp_path / "keys.sqlite") as server:
        # Looking around is free; so is what is refused, and what breaks.
        assert server.ask("/v1/models", None, mine)[0] == 200
        assert server.ask(CHAT, {"messages": []}, mine)[0] == 400
        assert server.ask(CHAT, b"{", mine)[0] == 400
        engine.broken = True
        assert server.ask(CHAT, HELLO, mine)[0] == 503
        status, _, answer = server.ask(CHAT, {**HELLO, "stream": True}, mine)
        engine.broken = False
        assert status == 503
        for left in ("2", "1", "0"):
            status, headers, answer = server.ask(CHAT, {**HELLO, "max_tokens": 4}, mine)
            assert (status, headers["x-ratelimit-remaining-quota-requests"]) == (200, left)
        spent = json.loads(answer)["usage"]["total_tokens"]
        status, headers, answer = server.ask(CHAT, HELLO, mine)
        assert (status, code_of(answer)) == (429, "insufficient_quota")
        assert 29 * 86400 < int(headers["retry-after"]) <= 30 * 86400
    # A new server goes on counting where the old one stopped.
    with guarded(ScriptedEngine(), keys=tmp_path / "keys.sqlite") as server:
        assert server.ask(CHAT, HELLO, mine)[0] == 429
    usage = Quotas(open_database(tmp_path / "keys.sqlite")).usage(key)
    assert (usage.requests, usage.tokens) == (3, 3 * spent)


@pytest.mark.parametrize("stream", [False, True])
def test_an_answer_that_nobody_waits_for_counts(tmp_path: Path, new_key: NewKey, stream: bool) -> None:
    key, mine = new_key("mine", Limits(quota_requests=3))
    engine = ScriptedEngine(pause=0.002)
    with guarded(engine, keys=tmp_path / "keys.sqlite") as server:
        connection = http.client.HTTPConnection("127.0.0.1", server.port)
        body = json.dumps({**HELLO, "max_tokens": 1900, "stream": stream})
        connection.request("POST", CHAT, body, {"content-type": "application/json", **mine})
        eventually(lambda: engine.tokens > 10)
        connection.close()
        eventually(server.is_free)
        quotas = Quotas(open_database(tmp_path / "keys.sqlite"))
        eventually(lambda: quotas.usage(key).tokens > 10)
        assert quotas.usage(key).requests == 1


def test_a_quota_of_tokens_counts_what_the_attribute_model_reads(tmp_path: Path, new_key: NewKey) -> None:
    """To the attribute model of this test each character is a token."""
    key, mine = new_key("mine", Limits(quota_tokens=10_000))
    scored = {"messages": [*HELLO["messages"], {"role": "assistant", "content": "Hi"}]}
    with guarded(ScriptedEngine(), scorer=LengthScorer(), keys=tmp_path / "keys.sqlite") as server:
        quotas = Quotas(open_database(tmp_path / "keys.sqlite"))
        assert server.ask("/v1/score", scored, mine)[0] == 200
        eventually(lambda: quotas.usage(key).tokens == len("HelloHi"))
        assert server.ask("/pooling", scored, mine)[0] == 200
        eventually(lambda: quotas.usage(key).tokens == 2 * len("HelloHi"))
        answer = server.ask(CHAT, {**HELLO, "max_tokens": 2, "n": 2, "measure": True}, mine)[2]
        generated = json.loads(answer)
        read = len("Hello") + sum(len(choice["message"]["content"]) for choice in generated["choices"])
        expected = 2 * len("HelloHi") + generated["usage"]["total_tokens"] + read
        eventually(lambda: quotas.usage(key).tokens == expected)
        eventually(lambda: len(server.requests()) == 3)
        assert [line["scored_tokens"] for line in server.requests()] == [len("HelloHi"), len("HelloHi"), read]
        told = server.ask("/metrics", None, mine)[2].decode()
        assert f"steerlm_scored_tokens_total {2 * len('HelloHi') + read}.0" in told


def test_what_was_delivered_of_an_answer_that_broke_counts(tmp_path: Path, new_key: NewKey) -> None:
    """Its tokens do; as a request it does not."""
    key, mine = new_key("mine", Limits(quota_requests=3, quota_tokens=10_000))
    engine = ScriptedEngine(pause=0.002)
    with guarded(engine, keys=tmp_path / "keys.sqlite") as server, ThreadPoolExecutor(1) as client:
        asked = client.submit(server.ask, CHAT, {**HELLO, "max_tokens": 1900, "stream": True}, mine)
        eventually(lambda: engine.tokens > 10)
        engine.broken = True
        status, _, answer = asked.result()
        assert (status, b"the engine broke" in answer) == (200, True)
        eventually(lambda: len(server.requests()) == 1)
        [line] = server.requests()
        assert line["failed"] is True
        used = Quotas(open_database(tmp_path / "keys.sqlite")).usage(key)
        assert (used.requests, used.tokens) == (0, line["prompt_tokens"] + line["completion_tokens"])
        assert line["completion_tokens"] > 9


@pytest.mark.parametrize("stream", [False, True])
def test_scores_that_nobody_waits_for_count_and_hold_their_place(tmp_path: Path, new_key: NewKey, stream: bool) -> None:
    """The attribute model cannot be stopped once it reads."""
    key, mine = new_key("mine", Limits(quota_tokens=10_000))
    scorer = LengthScorer()
    scorer.hold.set()
    with guarded(ScriptedEngine(), scorer=scorer, keys=tmp_path / "keys.sqlite", scoring=1) as server:
        connection = http.client.HTTPConnection("127.0.0.1", server.port)
        body = json.dumps({**HELLO, "max_tokens": 2, "measure": True, "stream": stream})
        connection.request("POST", CHAT, body, {"content-type": "application/json", **mine})
        eventually(lambda: scorer.scoring == 1)
        connection.close()
        waiting = http.client.HTTPConnection("127.0.0.1", server.port)
        waiting.request("POST", CHAT, body, {"content-type": "application/json", **mine})
        eventually(lambda: server.guard.scoring.waiting == 1)
        assert server.guard.scoring.running == 1
        assert not server.requests()
        waiting.close()
        eventually(lambda: len(server.requests()) == 1)
        assert "scored_tokens" not in server.requests()[0]
        scorer.hold.clear()
        eventually(lambda: len(server.requests()) == 2)
        line = server.requests()[1]
        assert line["client_left"] is True
        assert line["scored_tokens"] == len("Hello") + len("a a ")
        assert server.guard.scoring.running == 0
        used = Quotas(open_database(tmp_path / "keys.sqlite")).usage(key)
        generated = sum(line["prompt_tokens"] + line["completion_tokens"] for line in server.requests())
        assert used.tokens == generated + line["scored_tokens"]


def test_concurrent_requests_get_exactly_what_their_keys_allow(tmp_path: Path, new_key: NewKey) -> None:
    """Two servers on one file, forty clients at once."""
    _, narrow = new_key("narrow", Limits(quota_requests=7))
    _, wide = new_key("wide", Limits(requests_per_minute=15))
    engine, keys = ScriptedEngine(), tmp_path / "keys.sqlite"
    with guarded(engine, keys=keys) as one, guarded(engine, keys=keys) as two, ThreadPoolExecutor(40) as clients:
        asked = [(server, key) for server in (one, two) for key in (narrow, wide) for _ in range(10)]
        body = {**HELLO, "max_tokens": 2}
        found = list(clients.map(lambda item: (item[1] is narrow, item[0].ask(CHAT, body, item[1])[0]), asked))
        assert sorted(found).count((True, 200)) == 7
        assert sorted(found).count((False, 200)) == 15
        assert {status for _, status in found} == {200, 429}
        eventually(one.is_free)


def test_a_file_that_is_locked_refuses_and_does_not_let_in(tmp_path: Path, new_key: NewKey) -> None:
    _, mine = new_key("mine", Limits())
    with guarded(ScriptedEngine(), keys=tmp_path / "keys.sqlite") as server:
        database = open_database(tmp_path / "keys.sqlite")
        database.execute("DROP TABLE usage")
        status, headers, answer = server.ask(CHAT, HELLO, mine)
        assert (status, code_of(answer), headers["retry-after"]) == (503, "keys_unavailable", "5")


def test_an_open_server_answers_to_localhost_only() -> None:
    with guarded(ScriptedEngine()) as server:
        for host in ("localhost", "127.0.0.1:80", "[::1]:9", "LOCALHOST:1"):
            assert server.ask("/v1/models", None, {"host": host})[0] == 200
        for host in ("evil.example", "localhost.evil.example:80", "127.0.0.1.nip.io", "192.168.1.2", "", "[::1"):
            status, _, answer = server.ask("/v1/models", None, {"host": host})
            assert (host, status, code_of(answer)) == (host, 403, "bad_host")
    with guarded(ScriptedEngine(), insecure=True) as server:
        assert server.ask("/v1/models", None, {"host": "evil.example"})[0] == 200


def test_where_an_open_server_may_listen() -> None:
    for host in ("127.0.0.1", "::1", "localhost", "127.1.2.3"):
        assert is_loopback(host)
        check_binding(host, None, insecure=False)
    for host in ("0.0.0.0", "::", "10.0.0.1", "", "example.com", "localhost.example.com"):
        with pytest.raises(ConfigError, match="--insecure"):
            check_binding(host, None, insecure=False)
        check_binding(host, Path("keys.sqlite"), insecure=False)
        check_binding(host, None, insecure=True)


def test_browsers_of_other_pages_are_let_in_only_where_told(tmp_path: Path, new_key: NewKey) -> None:
    _, mine = new_key("mine", Limits())
    preflight = {
        "origin": "https://chat.example",
        "access-control-request-method": "POST",
        "access-control-request-headers": "authorization, content-type, x-stainless-lang",
    }
    allowed = "access-control-allow-origin"
    keys = tmp_path / "keys.sqlite"
    with guarded(ScriptedEngine(), keys=keys) as server:
        assert allowed not in server.ask(CHAT, None, preflight, "OPTIONS")[1]
        assert allowed not in server.ask(CHAT, HELLO, {**mine, "origin": "https://chat.example"})[1]
    with guarded(ScriptedEngine(), keys=keys, cors_origins=["https://chat.example"]) as server:
        status, headers, _ = server.ask(CHAT, None, preflight, "OPTIONS")
        assert (status, headers[allowed]) == (200, "https://chat.example")
        status, headers, _ = server.ask(CHAT, HELLO, {"origin": "https://chat.example"})
        assert (status, headers[allowed]) == (401, "https://chat.example")
        exposed = {name.strip() for name in headers["access-control-expose-headers"].split(",")}
        assert {"retry-after", "x-ratelimit-remaining-requests", "x-ratelimit-reset-quota-tokens"} <= exposed
        assert allowed not in server.ask(CHAT, HELLO, {**mine, "origin": "https://evil.example"})[1]


def test_what_is_computed_for_one_key_is_nothing_to_others(tmp_path: Path, new_key: NewKey) -> None:
    """Counts of cached tokens, and times, would tell what others have sent."""
    _, mine = new_key("mine", Limits())
    _, other = new_key("other", Limits())
    salted = {**HELLO, "cache_salt": "a"}
    for shared in (False, True):
        engine = ScriptedEngine()
        with guarded(engine, keys=tmp_path / "keys.sqlite", shared_cache=shared) as server:
            eventually(lambda: server.ask("/readyz")[0] == 200)
            engine.salts.clear()
            for body, key in ((HELLO, mine), (HELLO, mine), (HELLO, other), (salted, mine), (salted, other)):
                assert server.ask(CHAT, body, key)[0] == 200
        first, again, others, chosen, others_chosen = engine.salts
        assert first == again
        assert (first == others) == shared
        assert chosen != first
        assert (chosen == others_chosen) == shared


def test_a_request_that_nobody_waits_for_is_not_counted(tmp_path: Path, new_key: NewKey) -> None:
    """The client is gone while its key is looked up, which the lock of another process delays."""
    key, headers = new_key("mine", Limits(quota_requests=5, requests_per_minute=5))
    secret = headers["authorization"].removeprefix("Bearer ")
    other = open_database(tmp_path / "keys.sqlite")
    desk = KeyDesk(tmp_path / "keys.sqlite")

    async def leave() -> None:
        admitting = asyncio.ensure_future(desk.admit(secret, counted=True))
        await asyncio.sleep(0.2)
        admitting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await admitting

    other.execute("BEGIN IMMEDIATE")
    asyncio.run(leave())
    other.execute("COMMIT")
    desk.close()
    usage = Quotas(other).usage(key)
    assert (usage.requests, usage.until_full) == (0, 0)
