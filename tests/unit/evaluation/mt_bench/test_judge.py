"""Judgments of a scripted judge."""

from __future__ import annotations

import re
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from chat_server import ChatServer, Refusal, Said
from judging import judge, settings, seven, singles, write_answers
from small_bench import IDS, answer_row, reference_rows, write_bench, write_rows
from steerlm.errors import ConfigError, DataError, EngineError
from steerlm.evaluation.mt_bench.judge import judge_answers
from steerlm.evaluation.mt_bench.layouts import PairJudgment, read_judgments
from steerlm.evaluation.mt_bench.matches import load_answers
from steerlm.evaluation.mt_bench.questions import Benchmark, load_benchmark
from steerlm.evaluation.mt_bench.settings import BenchSettings, JudgeSettings


def test_prompts_by_category_and_turn(bench: Benchmark, tmp_path: Path) -> None:
    write_answers(tmp_path, "m")
    with ChatServer(seven) as server:
        report = judge(bench, settings(server), tmp_path)
    assert report.file == tmp_path / "model_judgment" / "j_single.jsonl"
    found = {(item.question_id, item.turn): item for item in singles(report.file)}
    assert len(found) == 16
    texts = {key: item.row["user_prompt"] for key, item in found.items()}
    assert texts[81, 1] == "Q 81.1? A m81.1"
    assert texts[81, 2] == "Q1 81.1? A1 m81.1 Q2 81.2? A2 m81.2"
    assert texts[111, 1] == "R r111.1 Q 111.1? A m111.1"
    assert texts[111, 2] == "R1 r111.1 R2 r111.2 Q1 111.1? A1 m111.1 Q2 111.2? A2 m111.2"
    names = Counter(item.prompt for item in found.values())
    assert names == {
        "single-v1": 5,
        "single-v1-multi-turn": 5,
        "single-math-v1": 3,
        "single-math-v1-multi-turn": 3,
    }
    assert {item.score for item in found.values()} == {7}
    for body in server.requests:
        system, user = body["messages"]
        assert (system["role"], user["role"]) == ("system", "user")
        assert system["content"] == next(item.prompt for key, item in found.items() if texts[key] == user["content"])
        assert (body["temperature"], body["max_tokens"], body["model"]) == (0.0, 2048, "j")


def test_pairs_are_judged_in_both_orders(bench: Benchmark, tmp_path: Path) -> None:
    """A judge that likes b's answers, except in question 81, where it likes whoever comes first."""
    write_answers(tmp_path, "a", "b")

    def script(body: dict[str, Any]) -> str:
        text = body["messages"][1]["content"]
        first = re.search(r" A ([ab])(\d+)", text)
        assert first
        return "[[A]]" if first[2] == "81" or first[1] == "b" else "[[B]]"

    with ChatServer(script) as server:
        report = judge(bench, settings(server, mode="pair-all"), tmp_path)
    assert len(server.requests) == 32
    assert report.file.name == "j_pair.jsonl"
    pairs: list[PairJudgment] = read_judgments([report.file])[1]
    assert {item.models for item in pairs} == {("a", "b")}
    for item in pairs:
        assert item.winners == (("model_1", "model_2") if item.question_id == 81 else ("model_2", "model_2"))
    row = next(item.row for item in pairs if (item.question_id, item.turn) == (101, 2))
    assert row["judge"] == ["j", "pair-math-v1-multi-turn"]
    head = "R1 r101.1 R2 r101.2 Q1 101.1? Q2 101.2? "
    assert row["g1_user_prompt"] == head + "A a101.1 then a101.2 B b101.1 then b101.2"
    assert row["g2_user_prompt"] == head + "A b101.1 then b101.2 B a101.1 then a101.2"


def test_a_baseline_meets_every_other_model(bench: Benchmark, tmp_path: Path) -> None:
    write_answers(tmp_path, "a", "b", "c")
    with ChatServer(lambda body: "[[C]]") as server:
        report = judge(bench, settings(server, mode="pair-baseline", baseline="b"), tmp_path)
        assert {item.models for item in read_judgments([report.file])[1]} == {("a", "b"), ("b", "c")}
        with pytest.raises(ConfigError, match="no answers of the baseline 'x'; there are those of a, b, c"):
            judge(bench, settings(server, mode="pair-baseline", baseline="x"), tmp_path)
        for wrong in (settings(server, mode="pair-baseline"), settings(server, baseline="b")):
            with pytest.raises(ConfigError, match="needs a baseline"):
                judge(bench, wrong, tmp_path)
    write_answers(tmp_path / "one", "a")
    with pytest.raises(ConfigError, match="answers of two models"):
        judge(bench, settings(server, mode="pair-all"), tmp_path / "one")


def test_a_pair_is_the_same_whoever_is_the_baseline(bench: Benchmark, tmp_path: Path) -> None:
    """Each of 16 turns is asked in both orders, once."""
    write_answers(tmp_path, "a", "b")
    with ChatServer(lambda body: "[[C]]") as server:
        for name in ("a", "b"):
            report = judge(bench, settings(server, mode="pair-baseline", baseline=name), tmp_path)
        both = load_answers(tmp_path, ["b", "a"])
        report = judge_answers(bench, both, settings(server, mode="pair-all"), tmp_path)
    assert (report.made, report.kept, len(server.requests)) == (0, 16, 32)


def test_a_busy_judge_is_asked_again(bench: Benchmark, tmp_path: Path) -> None:
    """Every text is first refused with 429, then with 503, then answered; the pauses between are those asked for."""
    write_answers(tmp_path, "m")
    seen: Counter[str] = Counter()
    lock = threading.Lock()

    def script(body: dict[str, Any]) -> str | Refusal:
        text = body["messages"][1]["content"]
        with lock:
            seen[text] += 1
            count = seen[text]
        return [Refusal(429, headers={"Retry-After": "0"}), Refusal(503), "[[4]]"][count - 1]  # type: ignore[return-value]

    with ChatServer(script) as server:
        report = judge(bench, settings(server), tmp_path)
    assert set(seen.values()) == {3}
    assert (len(seen), report.made, report.unrated) == (16, 16, 0)


def test_a_judge_that_stays_busy(bench: Benchmark, tmp_path: Path) -> None:
    write_answers(tmp_path, "m")

    def script(body: dict[str, Any]) -> str | Refusal:
        return Refusal(500, "out of order") if " 81.1?" in body["messages"][1]["content"] else "[[4]]"

    with ChatServer(script) as server:
        with pytest.raises(EngineError, match=r"2 of 16 judgments failed.*500 out of order; tried 3 times"):
            judge(bench, settings(server, judge_retries=2), tmp_path)
        assert len(server.requests) == 14 + 2 * 3
    with ChatServer(seven) as server:
        report = judge(bench, settings(server), tmp_path)
    assert (report.made, report.kept) == (2, 14)


def test_a_wrong_key_stops_at_once(bench: Benchmark, tmp_path: Path) -> None:
    write_answers(tmp_path, "m")
    with ChatServer(lambda body: Refusal(401, "bad key")) as server:
        with pytest.raises(EngineError, match=r"model j: 401 bad key"):
            judge(bench, settings(server, judge_concurrency=2), tmp_path)
        assert len(server.requests) <= 2


def test_the_key_comes_from_the_environment(bench: Benchmark, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_answers(tmp_path, "m")
    monkeypatch.setenv("OPENAI_API_KEY", "of another server")
    with ChatServer(seven) as server:
        judge(bench, settings(server), tmp_path)
        assert set(server.keys) == {None}
        server.keys.clear()
        monkeypatch.setenv("MY_KEY", "secret")
        report = judge(bench, settings(server, judge_key_env="MY_KEY"), _other(tmp_path))
        assert set(server.keys) == {"Bearer secret"}
        assert "secret" not in report.file.read_text()
    monkeypatch.delenv("OPENAI_API_KEY")
    with pytest.raises(ConfigError, match="set the environment variable OPENAI_API_KEY"):
        judge(bench, JudgeSettings(), tmp_path)


def _other(tmp_path: Path) -> Path:
    write_answers(tmp_path / "other", "m")
    return tmp_path / "other"


def test_requests_are_made_together_and_not_too_many(bench: Benchmark, tmp_path: Path) -> None:
    """Three wait for each other before any is answered: fewer would never go on."""
    write_answers(tmp_path, "m")
    barrier = threading.Barrier(3)
    calls = iter(range(100))

    def script(body: dict[str, Any]) -> str:
        if next(calls) < 15:
            barrier.wait(timeout=60)
        return "[[5]]"

    with ChatServer(script) as server:
        judge(bench, settings(server, judge_concurrency=3), tmp_path)
    assert server.busiest == 3


def test_tokens_and_cost(bench: Benchmark, tmp_path: Path) -> None:
    """The server counts words: the prompt's and the system text's, and three in each judgment."""
    write_answers(tmp_path, "m")
    with ChatServer(seven) as server:
        report = judge(bench, settings(server, price_prompt=30.0, price_completion=60.0), tmp_path)
        again = judge(bench, settings(server, price_prompt=30.0, price_completion=60.0), tmp_path)
    words = sum(len(message["content"].split()) for body in server.requests for message in body["messages"])
    assert (report.usage.prompt, report.usage.completion, report.usage.uncounted) == (words, 16 * 3, 0)
    assert report.cost == pytest.approx((words * 30 + 48 * 60) / 1e6)
    assert (again.usage.prompt, again.cost) == (0, 0)
    assert (again.whole_usage, again.whole_cost) == (report.usage, report.cost)


@pytest.mark.parametrize(("mode", "per_model"), [("single", 16), ("pair-all", 8)])
def test_tokens_that_no_server_counted(bench: Benchmark, tmp_path: Path, mode: str, per_model: int) -> None:
    """Uncounted tokens are no zeros: not in the row, not in the run's count, not in that of the file."""
    write_answers(tmp_path, "m", "n")
    with ChatServer(seven, counts=False) as server:
        report = judge(bench, settings(server, mode=mode), tmp_path)
        again = judge(bench, settings(server, mode=mode), tmp_path)
    assert not any("usage" in item.row for found in read_judgments([report.file]) for item in found)
    assert report.usage.uncounted == report.whole_usage.uncounted == again.whole_usage.uncounted == 2 * per_model
    assert again.usage.uncounted == 0


def test_answers_of_one_turn_or_missing_ones(bench: Benchmark, tmp_path: Path) -> None:
    rows = [answer_row(81, "m", ["one", "two"]), answer_row(91, "m", ["only one"])]
    write_rows(tmp_path / "model_answer" / "m.jsonl", rows)
    with ChatServer(seven) as server:
        report = judge(bench, settings(server), tmp_path)
    assert [(item.question_id, item.turn) for item in singles(report.file)] == [(81, 1), (91, 1), (81, 2)]
    with pytest.raises(DataError, match="no answers to judge"):
        load_answers(tmp_path / "nothing")


def test_a_filtered_judgment_is_unrated(bench: Benchmark, tmp_path: Path) -> None:
    write_answers(tmp_path, "m")
    with ChatServer(lambda body: Said(None, "content_filter")) as server:
        assert judge(bench, settings(server), tmp_path).unrated == 16


def test_a_server_that_speaks_another_language(bench: Benchmark, tmp_path: Path) -> None:
    write_answers(tmp_path, "m")
    with ChatServer(seven) as server:
        wrong = JudgeSettings(judge="j", judge_url=server.url.removesuffix("/v1"))
        with pytest.raises(EngineError, match="404 no such path"):
            judge(bench, wrong, tmp_path)


def test_wrong_references_are_flagged_in_the_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = write_bench(tmp_path / "data")
    monkeypatch.setattr("steerlm.evaluation.mt_bench.questions.known_wrong", lambda number, turns: turns[0] == "r111.1")
    better = write_rows(tmp_path / "better.jsonl", reference_rows(mark="better"))
    for name, chosen, note in (("flagged", None, "known-wrong"), ("mended", str(better), "replaced")):
        bench = load_benchmark(BenchSettings(bench=str(data), replace_wrong=chosen))
        write_answers(tmp_path / name, "m")
        with ChatServer(seven) as server:
            report = judge(bench, settings(server), tmp_path / name)
        notes = {item.question_id: item.row.get("reference") for item in singles(report.file)}
        assert notes == dict.fromkeys(IDS.values()) | {
            101: "as published",
            111: note,
            121: "as published",
        }
        texts = [item.row["user_prompt"] for item in singles(report.file) if item.question_id == 111]
        assert all(("better111.1" in text) == (name == "mended") for text in texts)


def test_delays_and_refusals_in_any_order_change_nothing(bench: Benchmark, tmp_path: Path) -> None:
    write_answers(tmp_path, "m")
    calls = iter(range(1000))

    def script(body: dict[str, Any]) -> str | Refusal:
        number = next(calls)
        time.sleep((number * 7 % 5) / 1000)
        if number % 3 == 0:
            return Refusal(429)
        return f"[[{len(body['messages'][1]['content']) % 10 + 1}]]"

    with ChatServer(script) as server:
        report = judge(bench, settings(server), tmp_path)
    for item in singles(report.file):
        assert item.score == len(item.row["user_prompt"]) % 10 + 1
    assert len(singles(report.file)) == 16
