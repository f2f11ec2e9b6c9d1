"""Answers of a scripted server."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from chat_server import ChatServer, Refusal, Said
from small_bench import answer_row, question_rows, write_rows
from steerlm.errors import ConfigError, DataError, EngineError
from steerlm.evaluation.mt_bench.answers import Setting, answer_questions, parse_setting
from steerlm.evaluation.mt_bench.layouts import read_answers
from steerlm.evaluation.mt_bench.questions import Question
from steerlm.evaluation.mt_bench.settings import AnswerSettings

QUESTIONS = [Question.from_row(row) for row in question_rows()]


def echo(body: dict[str, Any]) -> str:
    """Says what it was asked, at which attribute values."""
    values = body.get("attributes", {})
    return f"to {body['messages'][-1]['content']} at {values}"


def settings(server: ChatServer, **more: Any) -> AnswerSettings:
    return AnswerSettings(url=server.url, retry_pause=0.001, **more)


def test_the_second_turn_sees_the_first(tmp_path: Path) -> None:
    with ChatServer(echo) as server:
        report = answer_questions(QUESTIONS, "m", settings(server), tmp_path)
    [file] = report.files
    assert file == tmp_path / "model_answer" / "m.jsonl"
    answers = read_answers(file)
    assert [answer.question_id for answer in answers] == [question.id for question in QUESTIONS]
    assert answers[0].turns == ("to 81.1? at {}", "to 81.2? at {}")
    second = [body for body in server.requests if body["messages"][-1]["content"] == "81.2?"]
    assert [body["messages"] for body in second] == [
        [
            {"role": "user", "content": "81.1?"},
            {"role": "assistant", "content": "to 81.1? at {}"},
            {"role": "user", "content": "81.2?"},
        ]
    ]
    # One word in the first request, 1 + 4 + 1 in the second, and four in each answer.
    assert (report.usage.prompt, report.usage.completion) == (8 * 7, 8 * 8)
    assert (report.made, report.kept, report.cut) == (8, 0, 0)


def test_temperatures_by_category_or_none_at_all(tmp_path: Path) -> None:
    with ChatServer(echo) as server:
        answer_questions(QUESTIONS, "m", settings(server), tmp_path / "a")
        asked = {body["messages"][0]["content"]: body["temperature"] for body in server.requests}
        assert list(dict(sorted(asked.items())).values()) == [0.0, 0.0, 0.0, 0.0, 0.1, 0.1, 0.7, 0.7]
        assert (asked["81.1?"], asked["91.1?"], asked["141.1?"], asked["131.1?"]) == (0.7, 0.7, 0.1, 0.0)
        server.requests.clear()
        answer_questions(QUESTIONS, "m", settings(server, greedy=True), tmp_path / "b")
    assert {body["temperature"] for body in server.requests} == {0.0}
    assert {body["max_tokens"] for body in server.requests} == {1024}


def test_every_setting_has_its_values_in_both_turns_and_a_file_of_its_own(tmp_path: Path) -> None:
    steering = [parse_setting(text) for text in ("default", "verbosity=0,humor=4", "verbosity=none")]
    with ChatServer(echo) as server:
        report = answer_questions(QUESTIONS[:1], "org/m", settings(server), tmp_path, steering, name="m")
    assert report.models == ("m", "m@verbosity=0,humor=4", "m@verbosity=none")
    assert [path.name for path in report.files] == ["m.jsonl", "m@verbosity=0,humor=4.jsonl", "m@verbosity=none.jsonl"]
    values = [{}, {"verbosity": 0, "humor": 4}, {"verbosity": None}]
    for path, model, wanted in zip(report.files, report.models, values, strict=True):
        [answer] = read_answers(path)
        assert answer.model == model
        assert answer.turns == (f"to 81.1? at {wanted}", f"to 81.2? at {wanted}")
    assert {body["model"] for body in server.requests} == {"org/m"}
    assert sum("attributes" in body for body in server.requests) == 4


def test_fields_of_other_servers(tmp_path: Path) -> None:
    further = '{"chat_template_kwargs": {"x": 1}, "temperature": null, "top_p": 0.5}'
    asked = [Setting({"verbosity": 1})]
    with ChatServer(echo) as server:
        chosen = settings(server, attributes_field="chat_template_kwargs.attributes", body=further)
        answer_questions(QUESTIONS[:1], "m", chosen, tmp_path, asked)
    body = server.requests[0]
    assert body["chat_template_kwargs"] == {"attributes": {"verbosity": 1}, "x": 1}
    assert body["top_p"] == 0.5
    assert "temperature" not in body


def test_what_is_answered_is_not_asked_again(tmp_path: Path) -> None:
    with ChatServer(echo) as server:
        answer_questions(QUESTIONS[2:5], "m", settings(server), tmp_path)
        assert len(server.requests) == 6
        report = answer_questions(QUESTIONS, "m", settings(server), tmp_path)
        assert len(server.requests) == 16
        assert (report.made, report.kept) == (5, 3)
        again = answer_questions(QUESTIONS, "m", settings(server, concurrency=1), tmp_path)
        assert (again.made, again.kept, len(server.requests)) == (0, 8, 16)
        for other in (settings(server, greedy=True), settings(server, max_tokens=5), settings(server, body='{"a":1}')):
            with pytest.raises(DataError, match="made by another model or with other settings"):
                answer_questions(QUESTIONS, "m", other, tmp_path)
        with pytest.raises(DataError, match="another model"):
            answer_questions(QUESTIONS, "else", settings(server), tmp_path, name="m")


def test_answers_whose_values_a_server_passed_over_are_not_kept(tmp_path: Path) -> None:
    """The second command names the field that the server reads: answers asked with another one were not steered."""
    steering = [Setting(), Setting({"verbosity": 0})]
    with ChatServer(echo) as server:
        unheard = settings(server, attributes_field="chat_template_kwargs.attributes")
        answer_questions(QUESTIONS, "m", unheard, tmp_path, steering)
        with pytest.raises(DataError, match=r"m@verbosity=0\.jsonl: its answer to question 81 .* with other settings"):
            answer_questions(QUESTIONS, "m", settings(server), tmp_path, steering)
        plain = answer_questions(QUESTIONS, "m", settings(server), tmp_path)
        assert (plain.made, plain.kept) == (0, 8)
        assert answer_questions(QUESTIONS, "m", unheard, tmp_path, steering).kept == 16


@pytest.mark.parametrize("spelt", [81, "81"])
def test_published_answers_are_kept(tmp_path: Path, spelt: int | str) -> None:
    row = {**answer_row(81, "m", ["one", "two"]), "question_id": spelt}
    write_rows(tmp_path / "model_answer" / "m.jsonl", [row])
    with ChatServer(echo) as server:
        report = answer_questions(QUESTIONS, "m", settings(server), tmp_path)
    assert (report.made, report.kept) == (7, 1)
    assert read_answers(report.files[0])[0].turns == ("one", "two")


def test_answers_to_other_words_are_not_kept(tmp_path: Path) -> None:
    """Question 91 is worded anew; the row of 81, published without a digest, says nothing of its words."""
    write_rows(tmp_path / "model_answer" / "m.jsonl", [answer_row(81, "m", ["one", "two"])])
    reworded = [
        replace(item, turns=(f"{item.turns[0]}?", item.turns[1])) if item.id in (81, 91) else item for item in QUESTIONS
    ]
    with ChatServer(echo) as server:
        answer_questions(QUESTIONS, "m", settings(server), tmp_path)
        with pytest.raises(DataError, match=r"m\.jsonl: its answer to question 91 is to other words"):
            answer_questions(reworded, "m", settings(server), tmp_path)
        without = [item for item in reworded if item.id != 91]
        assert answer_questions(without, "m", settings(server), tmp_path).kept == 7


def test_a_row_with_the_question_itself_is_kept(tmp_path: Path) -> None:
    """Other programs may write the question's text beside its answer; it is not taken for the digest of its words."""
    row = {**answer_row(81, "m", ["one", "two"]), "question": QUESTIONS[0].turns[0]}
    write_rows(tmp_path / "model_answer" / "m.jsonl", [row])
    with ChatServer(echo) as server:
        assert answer_questions(QUESTIONS[:1], "m", settings(server), tmp_path).kept == 1
        made = answer_questions(QUESTIONS[1:2], "m", settings(server), tmp_path)
    assert [answer.row.get("question_digest") for answer in read_answers(made.files[0])] == [None, QUESTIONS[1].digest]


def test_answers_carry_the_fingerprint_of_their_server(tmp_path: Path) -> None:
    for fingerprint, carried in (("0123456789abcdef", ["0123456789abcdef"]), (None, None)):
        with ChatServer(echo, fingerprint=fingerprint) as server:
            report = answer_questions(QUESTIONS[:1], "m", settings(server), tmp_path / str(fingerprint))
        [answer] = read_answers(report.files[0])
        assert answer.row.get("fingerprints") == carried


def test_failures_leave_the_rest(tmp_path: Path) -> None:
    """An answer that may come another time ends the run, when all else is saved."""

    def script(body: dict[str, Any]) -> str | Refusal:
        return Refusal(500, "busy") if body["messages"][0]["content"] == "101.1?" else echo(body)

    with ChatServer(script) as server:
        with pytest.raises(EngineError, match=r"1 of 8 answers failed.*question 101 of m: .*500 busy"):
            answer_questions(QUESTIONS, "m", settings(server, retries=1), tmp_path)
        assert len(server.requests) == 16
    assert len(read_answers(tmp_path / "model_answer" / "m.jsonl")) == 7


def test_a_refused_turn_leaves_those_before_it_and_is_asked_for_again(tmp_path: Path) -> None:
    """A server whose context is too small for a first and a second turn, and later is not."""
    small = True

    def answer(body: dict[str, Any]) -> Any:
        if small and body["messages"][-1]["content"] in ("81.2?", "91.1?"):
            return Refusal(413, "too long")
        return echo(body)

    with ChatServer(answer) as server:
        chosen = settings(server)
        report = answer_questions(QUESTIONS, "m", chosen, tmp_path)
        [file] = report.files
        found = {item.question_id: item for item in read_answers(file)}
        assert sorted(found) == [question.id for question in QUESTIONS if question.id != 91]
        assert [len(item.turns) for item in found.values()] == [1, 2, 2, 2, 2, 2, 2]
        refused = ["question 81 of m: turn 2: 413 too long", "question 91 of m: turn 1: 413 too long"]
        assert [str(failure) for failure in report.refused] == refused
        assert (report.made, report.kept) == (7, 0)
        before = file.read_bytes()
        server.requests.clear()
        again = answer_questions(QUESTIONS, "m", chosen, tmp_path)
        assert sorted(body["messages"][-1]["content"] for body in server.requests) == ["81.2?", "91.1?"]
        assert [str(failure) for failure in again.refused] == refused
        assert (again.made, again.kept, file.read_bytes()) == (0, 6, before)
        small = False
        server.requests.clear()
        last = answer_questions(QUESTIONS, "m", chosen, tmp_path)
        assert (last.made, last.kept, last.refused) == (2, 6, ())
        # Of what this run asked for alone: 6 words for 81.2, 1 and 6 for both turns of 91; four in each answer.
        assert (last.usage.prompt, last.usage.completion) == (13, 12)
        asked = {body["messages"][-1]["content"]: body["messages"] for body in server.requests}
    assert sorted(asked) == ["81.2?", "91.1?", "91.2?"]
    assert [message["content"] for message in asked["81.2?"]] == ["81.1?", found[81].turns[0], "81.2?"]
    whole = read_answers(file)
    assert [(item.question_id, len(item.turns)) for item in whole] == [(question.id, 2) for question in QUESTIONS]
    assert whole[0].turns[0] == found[81].turns[0]
    # One word in the first request, 1 + 4 + 1 in the second, and four in each answer, as if it had been made at once.
    assert whole[0].row["usage"] == {"prompt_tokens": 7, "completion_tokens": 8}
    assert len(file.read_text().splitlines()) == 8


@pytest.mark.parametrize(
    ("fault", "says"),
    [
        (Refusal(500, "gone"), "1 of 8 answers failed.*question 81 of m: .*500 gone"),
        (Refusal(402, "no credit"), "402 no credit"),
    ],
)
def test_a_first_turn_outlives_whatever_becomes_of_the_second(tmp_path: Path, fault: Refusal, says: str) -> None:
    fails = True

    def answer(body: dict[str, Any]) -> str | Refusal:
        return fault if fails and body["messages"][-1]["content"] == "81.2?" else echo(body)

    with ChatServer(answer) as server:
        chosen = settings(server, retries=0, concurrency=1)
        with pytest.raises(EngineError, match=says):
            answer_questions(QUESTIONS, "m", chosen, tmp_path)
        fails = False
        asked = len(server.requests)
        report = answer_questions(QUESTIONS, "m", chosen, tmp_path)
        later = [body["messages"][-1]["content"] for body in server.requests[asked:]]
    assert later[0] == "81.2?"
    assert "81.1?" not in later
    [file] = report.files
    assert [(item.question_id, len(item.turns)) for item in read_answers(file)] == [(item.id, 2) for item in QUESTIONS]
    assert len(file.read_text().splitlines()) == 8


def test_a_first_turn_is_on_the_disk_before_the_second_is_asked_for(tmp_path: Path) -> None:
    seen = {}

    def look(body: dict[str, Any]) -> str:
        if len(body["messages"]) == 3:
            path = tmp_path / "model_answer" / "m.jsonl"
            seen[body["messages"][-1]["content"]] = {item.question_id: item.turns for item in read_answers(path)}
        return echo(body)

    with ChatServer(look) as server:
        answer_questions(QUESTIONS[:2], "m", settings(server, concurrency=1), tmp_path)
    assert seen["81.2?"] == {81: ("to 81.1? at {}",)}
    assert seen["91.2?"] == {81: ("to 81.1? at {}", "to 81.2? at {}"), 91: ("to 91.1? at {}",)}


def test_a_question_that_a_filter_keeps_out_leaves_the_others(tmp_path: Path) -> None:
    def moderated(body: dict[str, Any]) -> str | Refusal:
        return Refusal(403, "flagged") if body["messages"][0]["content"] == "101.1?" else echo(body)

    with ChatServer(moderated) as server:
        report = answer_questions(QUESTIONS, "m", settings(server), tmp_path)
    assert [str(failure) for failure in report.refused] == ["question 101 of m: turn 1: 403 flagged"]
    assert report.made == 7


def test_a_setting_that_is_refused_altogether_is_a_fault(tmp_path: Path) -> None:
    def answer(body: dict[str, Any]) -> Any:
        return Refusal(400, "unknown field attributes") if "attributes" in body else "Yes."

    steering = [parse_setting(text) for text in ("default", "verbosity=0")]
    with ChatServer(answer) as server:
        for _ in range(2):
            with pytest.raises(
                EngineError, match=r"all answers of a model .* refused: 8, .*verbosity=0: turn 1: 400 unk"
            ):
                answer_questions(QUESTIONS, "m", settings(server), tmp_path, steering)
    assert len(read_answers(tmp_path / "model_answer" / "m.jsonl")) == 8


def test_answers_to_other_questions_are_none_of_what_is_refused_altogether(tmp_path: Path) -> None:
    write_rows(tmp_path / "model_answer" / "m.jsonl", [answer_row(1, "m", ["one", "two"])])
    with ChatServer(lambda body: Refusal(400, "no")) as server, pytest.raises(EngineError, match="all answers of a"):
        answer_questions(QUESTIONS, "m", settings(server), tmp_path)


def test_cut_and_empty_answers_are_told(tmp_path: Path) -> None:
    def script(body: dict[str, Any]) -> Said:
        first = body["messages"][-1]["content"] == "81.1?"
        return Said(None, "content_filter") if first else Said("x", "length")

    with ChatServer(script) as server:
        report = answer_questions(QUESTIONS[:1], "m", settings(server), tmp_path)
    assert report.cut == 1
    assert read_answers(report.files[0])[0].turns == ("", "x")


def test_half_a_surrogate_pair_becomes_the_replacement_character(tmp_path: Path) -> None:
    """A whole pair is one character and stays; the model's own turn is sent back as it is kept."""
    with ChatServer(lambda body: "a \ud83d b \U0001f600") as server:
        report = answer_questions(QUESTIONS[:1], "m", settings(server), tmp_path)
    [answer] = read_answers(report.files[0])
    assert answer.turns == ("a \ufffd b \U0001f600",) * 2
    assert server.requests[1]["messages"][1]["content"] == "a \ufffd b \U0001f600"


def test_a_server_that_is_not_there(tmp_path: Path) -> None:
    with ChatServer(echo) as server:
        gone = settings(server, retries=1, concurrency=1)
    with pytest.raises(EngineError, match=r"8 of 8 answers failed.*ConnectError.*tried 2 times"):
        answer_questions(QUESTIONS, "m", gone, tmp_path)


@pytest.mark.parametrize(
    ("text", "says"),
    [("verbosity", "write attribute=value"), ("verbosity=low", "write"), ("", "write"), ("a=1,a=2", "set twice")],
)
def test_settings_that_are_none(text: str, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        parse_setting(text)


def test_a_setting_given_twice(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="given twice"):
        answer_questions(QUESTIONS, "m", AnswerSettings(), tmp_path, [Setting(), parse_setting("default")])
