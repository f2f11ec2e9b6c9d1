"""`steerlm eval mt-bench` from end to end, with a scripted model and a scripted judge."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from chat_server import ChatServer, Refusal
from small_bench import answer_row, judgment_row, write_bench, write_rows
from steerlm.attributes import STEERLM
from steerlm.cli.main import run
from steerlm.models.directory import ModelInfo


def model(body: dict[str, Any]) -> str:
    """Answers with as many words as its verbosity says, two without one."""
    return " ".join(["word"] * (body.get("attributes", {}).get("verbosity", 1) + 1))


def judge(body: dict[str, Any]) -> str:
    """Twice as many points as the answer to the last turn has words, of at most five in all these answers."""
    text = body["messages"][1]["content"]
    answer = text.rsplit(" A2 " if " A2 " in text else " A ")[-1]
    return f"It has words. Rating: [[{2 * len(answer.split())}]]"


def test_the_whole_benchmark_at_three_settings(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Answers of 2, 1 and 5 words get 4, 2 and 10 points: 2 fewer and 6 more than at the defaults."""
    bench, out = write_bench(tmp_path / "data"), tmp_path / "out"
    with ChatServer(model) as served, ChatServer(judge) as judging:
        command = ["eval", "mt-bench", "run", "org/m", "--name", "m", "--out", str(out), "--bench", str(bench)]
        command += ["--setting", "default", "--setting", "verbosity=0", "--setting", "verbosity=4"]
        command += ["--url", served.url, "--judge", "j", "--judge-url", judging.url, "--price-prompt", "1000000"]
        assert run(command) == 0
        shown = capsys.readouterr()
        assert (len(served.requests), len(judging.requests)) == (48, 48)
        assert run([*command, "--json"]) == 0
        assert (len(served.requests), len(judging.requests)) == (48, 48)
    assert "24 questions answered (0 cut at the limit" in shown.err
    words = sum(len(message["content"].split()) for body in judging.requests for message in body["messages"])
    assert f"cost {words}.00" in shown.err.replace("\n", "")
    found = json.loads(capsys.readouterr().out)
    assert {score["model"]: score["total"]["value"] for score in found["scores"]} == {
        "m": 4,
        "m@verbosity=0": 2,
        "m@verbosity=4": 10,
    }
    assert all(score["counts"]["missing"] == 0 for score in found["scores"])
    assert {item["model"]: item["points"]["value"] for item in found["differences"]} == {
        "m@verbosity=0": -2,
        "m@verbosity=4": 6,
    }
    assert json.loads((out / "mt_bench.json").read_text()) == found
    assert found["provenance"]["rules"]["benchmark"].keys() == {"question.jsonl", "judge_prompts.jsonl", "gpt-4.jsonl"}
    assert (out / "mt_bench.png").read_bytes().startswith(b"\x89PNG")


def test_step_by_step(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bench, out = write_bench(tmp_path / "data"), tmp_path / "out"
    common = ["--out", str(out), "--bench", str(bench)]
    with ChatServer(model) as served, ChatServer(lambda body: "[[A]]") as judging:
        answer = ["eval", "mt-bench", "answer", "m", *common, "--url", served.url]
        assert run([*answer, "--setting", "default", "--setting", "verbosity=3"]) == 0
        pairs = ["--mode", "pair-baseline", "--baseline", "m", "--judge", "j", "--judge-url", judging.url]
        assert run(["eval", "mt-bench", "judge", *common, *pairs]) == 0
    capsys.readouterr()
    assert run(["eval", "mt-bench", "score", str(out / "model_judgment" / "j_pair.jsonl"), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [(rate["model"], rate["ties"], rate["rate"]["value"]) for rate in found["win_rates"]] == [
        ("m", 16, 0.5),
        ("m@verbosity=3", 16, 0.5),
    ]
    [bias] = found["position_bias"]
    assert (bias["consistent"], bias["first"]) == (0, 16)


def test_servers_that_count_no_tokens(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["eval", "mt-bench", "run", "m", "--out", str(tmp_path / "out"), "--bench", str(write_bench(tmp_path))]
    with ChatServer(model, counts=False) as served, ChatServer(judge, counts=False) as judging:
        assert run([*command, "--url", served.url, "--judge", "j", "--judge-url", judging.url]) == 0
    said = capsys.readouterr().err.replace("\n", " ")
    uncounted = "0 prompt tokens, 0 written and {} without a count of tokens"
    assert f"0 cut at the limit; {uncounted.format(8)}" in said
    assert f"0 without a rating; {uncounted.format(16)}" in said
    assert f"all together {uncounted.format(16)}" in said


def test_a_baseline_that_was_answered_before(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Win rates are those of the run's own comparisons, of all that the judge has in its file."""
    common = ["--out", str(tmp_path / "out"), "--bench", str(write_bench(tmp_path / "data"))]
    pairs = ["--mode", "pair-baseline", "--baseline", "base", "--judge", "j"]
    with ChatServer(model) as served, ChatServer(lambda body: "[[C]]") as judging:
        asked, judged = ["--url", served.url], ["--judge-url", judging.url]
        for name in ("base", "x", "y"):
            assert run(["eval", "mt-bench", "answer", name, *common, *asked]) == 0
        everything = ["eval", "mt-bench", "judge", *common, "--mode", "pair-all", "--judge", "j", *judged]
        assert run(everything) == 0
        assert len(judging.requests) == 3 * 32
        assert run(["eval", "mt-bench", "judge", "--models", "x", *common, *pairs, *judged]) == 0
        assert len(judging.requests) == 3 * 32
        capsys.readouterr()
        assert run(["eval", "mt-bench", "run", "m", *common, *pairs, *asked, *judged, "--json"]) == 0
        assert len(judging.requests) == 4 * 32
    rates = json.loads(capsys.readouterr().out)["win_rates"]
    assert {rate["model"]: rate["ties"] for rate in rates} == {"base": 16, "m": 16}


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ([], "set the environment variable OPENAI_API_KEY"),
        (["--mode", "pair-all"], "pairs need the answers of two models"),
        (["--mode", "pair-baseline"], "mode pair-baseline needs a baseline"),
        (["--mode", "pair-baseline", "--baseline", "base"], "base.jsonl: no such file"),
    ],
)
def test_what_keeps_the_judge_from_work_is_said_before_anything_is_asked(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    arguments: list[str],
    says: str,
) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    command = ["eval", "mt-bench", "run", "m", "--out", str(tmp_path / "out"), "--bench", str(write_bench(tmp_path))]
    with ChatServer(model) as served:
        assert run([*command, "--url", served.url, *arguments]) == 2
    assert says in capsys.readouterr().err
    assert not served.requests


def test_without_matplotlib_there_are_tables(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("steerlm.cli.eval_mt_bench.has_matplotlib", lambda: False)
    file, out = write_rows(tmp_path / "one.jsonl", [judgment_row(81, "m", 1, 8)]), tmp_path / "tables"
    assert run(["eval", "mt-bench", "score", str(file), "--out", str(out)]) == 0
    shown = capsys.readouterr()
    assert "8.00" in shown.out
    assert "no radar plot: matplotlib is not installed" in shown.err
    assert [path.name for path in out.iterdir()] == ["mt_bench.json"]


def test_scores_are_of_the_questions_of_the_benchmark_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The folder has answers and judgments of a larger benchmark."""
    larger, bench = write_bench(tmp_path / "larger", per_category=2), write_bench(tmp_path / "data")
    command = ["eval", "mt-bench", "run", "m", "--out", str(tmp_path / "out"), "--json", "--judge", "j"]
    with ChatServer(model) as served, ChatServer(judge) as judging:
        command += ["--url", served.url, "--judge-url", judging.url, "--bench"]
        for folder, questions in ((larger, 16), (bench, 8)):
            assert run([*command, str(folder)]) == 0
            [score] = json.loads(capsys.readouterr().out)["scores"]
            assert (score["counts"]["questions"], score["counts"]["missing"]) == (questions, 0)
            assert "other" not in score["categories"]


def test_win_rates_are_of_the_questions_of_the_benchmark_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    larger, bench = write_bench(tmp_path / "larger", per_category=2), write_bench(tmp_path / "data")
    command = ["eval", "mt-bench", "run", "m", "--out", str(tmp_path / "out"), "--json", "--judge", "j"]
    command += ["--mode", "pair-all", "--setting", "default", "--setting", "verbosity=4"]
    with ChatServer(model) as served, ChatServer(lambda body: "[[C]]") as judging:
        command += ["--url", served.url, "--judge-url", judging.url, "--bench"]
        for folder, turns in ((larger, 32), (bench, 16)):
            assert run([*command, str(folder)]) == 0
            assert [rate["ties"] for rate in json.loads(capsys.readouterr().out)["win_rates"]] == [turns] * 2


def test_tables_from_judgment_files_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    one = write_rows(tmp_path / "one.jsonl", [judgment_row(81, "m", 1, 8), judgment_row(81, "m", 1, 4)])
    two = write_rows(tmp_path / "two.jsonl", [judgment_row(91, "m", 2, -1, "?")])
    assert run(["eval", "mt-bench", "score", str(one), str(two)]) == 0
    text = capsys.readouterr().out
    assert "6.00" in text
    assert "1 without a rating, left out; 159 missing; 1 duplicates" in text.replace("\n", "")
    assert run(["eval", "mt-bench", "score", str(one), str(two), "--duplicates", "last", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["scores"][0]["total"]["value"] == 4
    out = tmp_path / "tables"
    assert run(["eval", "mt-bench", "score", str(one), "--out", str(out)]) == 0
    assert {path.name for path in out.iterdir()} == {"mt_bench.json", "mt_bench.png"}


def test_scores_on_the_card_of_a_policy(tmp_path: Path) -> None:
    policy = tmp_path / "policy"
    policy.mkdir()
    ModelInfo("policy", STEERLM, "chatml", fingerprint="0123456789abcdef").save(policy)
    grades = write_rows(tmp_path / "one.jsonl", [judgment_row(81, "m", 1, 8), judgment_row(81, "m", 2, 4)])
    assert run(["eval", "mt-bench", "score", str(grades), "--card", str(policy)]) == 0
    assert re.search(r"\| m \| .* \| 1 \| 2 \| 158 \|\n", (policy / "README.md").read_text())
    assert "6.00" in (policy / "README.md").read_text()
    assert json.loads((policy / "evaluation" / "mt_bench.json").read_text())["model"] == "0123456789abcdef"


def test_scores_of_weights_that_the_policy_no_longer_has(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The policy is trained anew in its place between two runs, the second of which would find every answer there."""
    policy, out = tmp_path / "policy", tmp_path / "out"
    policy.mkdir()
    old, new = "0123456789abcdef", "fedcba9876543210"
    command = ["eval", "mt-bench", "run", "m", "--bench", str(write_bench(tmp_path / "data")), "--card", str(policy)]
    command += ["--setting", "default", "--setting", "verbosity=0", "--judge", "j"]
    with ChatServer(model, fingerprint=old) as served, ChatServer(judge) as judging:
        command += ["--url", served.url, "--judge-url", judging.url]
        ModelInfo("policy", STEERLM, "chatml", fingerprint=old).save(policy)
        assert run([*command, "--out", str(out)]) == 0
        record = (policy / "evaluation" / "mt_bench.json").read_text()
        ModelInfo("policy", STEERLM, "chatml", fingerprint=new).save(policy)
        served.fingerprint = new
        judged = len(judging.requests)
        assert run([*command, "--out", str(out)]) == 2
        assert f"its weights are {new}, and answers of m are of {old}" in capsys.readouterr().err
        file = out / "model_judgment" / "j_single.jsonl"
        assert run(["eval", "mt-bench", "score", str(file), "--card", str(policy)]) == 2
        assert (policy / "evaluation" / "mt_bench.json").read_text() == record
        # Answered anew with the same words: the judgments stay, and are the new weights'. The old ones answered another
        # benchmark in the same folder.
        shutil.rmtree(out / "model_answer")
        other = {**answer_row(1, "m", ["one", "two"]), "fingerprints": [old]}
        write_rows(out / "model_answer" / "m.jsonl", [other])
        assert run([*command, "--out", str(out)]) == 0
        assert len(judging.requests) == judged
        assert run(["eval", "mt-bench", "score", str(file), "--card", str(policy)]) == 0
    assert json.loads((policy / "evaluation" / "mt_bench.json").read_text())["model"] == new


@pytest.mark.parametrize(
    ("fingerprints", "refused", "taken"),
    [
        ({"m": "0123456789abcdef", "other": "fedcba9876543210"}, False, None),
        ({"m": "0123456789abcdef", "other": None}, False, None),
        ({"m": "0123456789abcdef", "m@verbosity=0": "fedcba9876543210"}, True, None),
        ({"m": "fp_44709d6fcb"}, False, None),
        ({"m": None}, False, None),
        ({"m": "fp_44709d6fcb", "other": "fedcba9876543210"}, False, "m"),
        ({"m": None, "other": "fedcba9876543210"}, False, "m"),
        ({"m@verbosity=0": None, "m": None, "gpt-4": None, "other": "fedcba9876543210"}, False, "m or gpt-4"),
        ({"m": "fedcba9876543210", "m@verbosity=0": None}, True, None),
        ({"m": "aaaabbbbccccdddd", "other": "fedcba9876543210"}, True, None),
    ],
)
def test_other_models_and_other_servers_beside_the_policy(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    fingerprints: dict[str, str | None],
    refused: bool,
    taken: str | None,
) -> None:
    """A model whose server tells nothing may be the policy, beside one of other weights; it is then named."""
    policy = tmp_path / "policy"
    policy.mkdir()
    ModelInfo("policy", STEERLM, "chatml", fingerprint="0123456789abcdef").save(policy)
    rows = [
        judgment_row(81, name, 1, 8, **({"fingerprints": [item]} if item else {}))
        for name, item in fingerprints.items()
    ]
    file = write_rows(tmp_path / "one.jsonl", rows)
    assert run(["eval", "mt-bench", "score", str(file), "--card", str(policy)]) == (2 if refused else 0)
    says = [line for line in capsys.readouterr().err.splitlines() if "taken to be it" in line]
    assert [line.partition("taken to be it: ")[2] for line in says] == ([taken] if taken else [])


def test_a_card_is_refused_with_pairs_before_anything_is_asked(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    policy, bench = tmp_path / "policy", write_bench(tmp_path / "data")
    policy.mkdir()
    ModelInfo("policy", STEERLM, "chatml", fingerprint="0123456789abcdef").save(policy)
    with ChatServer(model) as served, ChatServer(judge) as judging:
        command = ["eval", "mt-bench", "run", "m", "--out", str(tmp_path / "out"), "--bench", str(bench)]
        command += ["--setting", "default", "--setting", "verbosity=0", "--mode", "pair-all"]
        command += ["--url", served.url, "--judge", "j", "--judge-url", judging.url, "--card", str(policy)]
        assert run(command) == 2
        assert not served.requests
    assert "--card shows grades of single answers" in " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["score"], "name the judgment files"),
        (["score", "nowhere.jsonl"], "nowhere.jsonl: no such file"),
        (["answer", "m", "--out", "o", "--body", "[1]"], "--body: must be a JSON object"),
        (["answer", "m", "--out", "o", "--url", "localhost"], "--url: must begin with http://"),
        (["answer", "m", "--out", "o", "--concurrency", "0"], "--concurrency: must be at least 1, not 0"),
        (["judge", "--out", "o", "--bench", "nowhere"], "nowhere: no such directory; give --bench"),
    ],
)
def test_what_is_wrong_is_said(capsys: pytest.CaptureFixture[str], arguments: list[str], says: str) -> None:
    assert run(["eval", "mt-bench", *arguments]) == 2
    assert says in capsys.readouterr().err


def test_a_failing_server_ends_with_what_to_do(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bench = write_bench(tmp_path / "data")
    with ChatServer(lambda body: Refusal(400, "no")) as served:
        command = ["eval", "mt-bench", "answer", "m", "--out", str(tmp_path), "--bench", str(bench)]
        assert run([*command, "--url", served.url]) == 2
    said = "all answers of a model or pair are refused: 8, the first for question 81 of m: turn 1: 400 no"
    assert said in capsys.readouterr().err


def test_what_is_refused_does_not_keep_the_rest_from_being_scored(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A second turn is too long for the model's context, and the judge's filter keeps an answer out."""

    def short(body: dict[str, Any]) -> Any:
        return Refusal(400, "2100 tokens") if body["messages"][-1]["content"] == "81.2?" else model(body)

    def filtered(body: dict[str, Any]) -> Any:
        return Refusal(400, "content filter") if "91.1?" in body["messages"][-1]["content"] else judge(body)

    out, bench = tmp_path / "out", write_bench(tmp_path / "data")
    with ChatServer(short) as served, ChatServer(filtered) as judging:
        command = ["eval", "mt-bench", "run", "m", "--out", str(out), "--bench", str(bench)]
        command += ["--url", served.url, "--judge", "j", "--judge-url", judging.url]
        for asked in (16, 1):
            served.requests.clear()
            assert run(command) == 0
            assert len(served.requests) == asked
            said = capsys.readouterr().err
            answers = "1 answers lack turns that the server refused; the first: question"
            assert f"{answers} 81 of m: turn 2: 400 2100 tokens" in said
            judgments = "2 judgments are refused by the judge, and missing in the scores; the first: question"
            assert f"{judgments} 91, turn 1, m: 400 content filter" in said
    [score] = json.loads((out / "mt_bench.json").read_text())["scores"]
    assert score["counts"]["rated"] == 13


def test_a_judge_that_refuses_a_whole_model_fails_beside_others_that_it_judged(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    refuses = False
    out, bench = tmp_path / "out", write_bench(tmp_path / "data")
    with (
        ChatServer(model) as served,
        ChatServer(lambda body: Refusal(400, "no") if refuses else judge(body)) as judging,
    ):
        command = ["eval", "mt-bench", "run", "m", "--out", str(out), "--bench", str(bench)]
        command += ["--url", served.url, "--judge", "j", "--judge-url", judging.url, "--setting", "default"]
        assert run(command) == 0
        refuses = True
        assert run([*command, "--setting", "verbosity=4"]) == 2
    assert "all judgments of a model or pair are refused: 16, " in capsys.readouterr().err


def test_a_radar_of_other_scores_is_removed(tmp_path: Path) -> None:
    out, bench, policy = tmp_path / "out", write_bench(tmp_path / "data"), tmp_path / "policy"
    policy.mkdir()
    ModelInfo("policy", STEERLM, "chatml", fingerprint="0123456789abcdef").save(policy)
    with ChatServer(model) as served, ChatServer(judge) as judging:
        command = ["eval", "mt-bench", "run", "m", "--out", str(out), "--bench", str(bench)]
        command += ["--url", served.url, "--judge", "j", "--judge-url", judging.url, "--setting", "default"]
        assert run([*command, "--card", str(policy)]) == 0
        assert (out / "mt_bench.png").is_file()
        assert (policy / "evaluation" / "mt_bench.png").is_file()
        assert "](evaluation/mt_bench.png)" in (policy / "README.md").read_text()
        assert run([*command, "--setting", "verbosity=4", "--mode", "pair-all"]) == 0
    assert not (out / "mt_bench.png").exists()


def test_it_does_without_pytorch() -> None:
    code = "import sys, steerlm.cli.eval_mt_bench; sys.exit(bool({'torch', 'transformers'} & set(sys.modules)))"
    subprocess.run([sys.executable, "-c", code], check=True)
