"""Answers that are there are used again, and only where they are the same."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from scripted_policy import PROMPTS, QUICK, Scripted
from steerlm.attributes import STEERLM
from steerlm.engines import Request
from steerlm.engines.base import Deliver
from steerlm.errors import DataError, EngineError
from steerlm.evaluation import conditions, steering
from steerlm.evaluation.answers_file import ConditionAnswers
from steerlm.evaluation.steering import Judges, evaluate_steering
from steerlm.models.base import weights_digest
from steerlm.models.load import SteerModel, load_model, new_model
from tiny import TOKENIZERS, save_base


def test_what_is_there_is_not_done_again(policy: SteerModel, tmp_path: Path) -> None:
    engine = Scripted(policy, lambda asked: asked)
    first = evaluate_steering(policy, PROMPTS, QUICK, tmp_path, engine=engine)
    assert engine.answered == len(PROMPTS) * 5
    assert evaluate_steering(policy, PROMPTS, QUICK, tmp_path, engine=engine) == first
    more = QUICK.model_copy(update={"resamples": 200})
    evaluate_steering(policy, PROMPTS, more, tmp_path, engine=engine)
    assert engine.answered == len(PROMPTS) * 5
    wider = QUICK.model_copy(update={"attributes": ["verbosity", "humor"]})
    evaluate_steering(policy, PROMPTS, wider, tmp_path, engine=engine)
    # Humor at its default, 0, with verbosity at its own is among what was answered before.
    assert engine.answered == len(PROMPTS) * (5 + 4)
    # Nor do attributes that are asked for alone undo the others, or have their defaults answered again.
    for attributes in (["creativity"], ["verbosity", "humor"], ["creativity", "humor"]):
        besides = QUICK.model_copy(update={"attributes": attributes})
        evaluate_steering(policy, PROMPTS, besides, tmp_path, engine=engine)
        assert engine.answered == len(PROMPTS) * (5 + 4 + 4)
    other = QUICK.model_copy(update={"max_tokens": 80})
    evaluate_steering(policy, PROMPTS, other, tmp_path, engine=engine)
    assert engine.answered == len(PROMPTS) * (5 + 4 + 4 + 5)


def test_a_setting_of_one_condition_leaves_the_answers_of_others(policy: SteerModel, tmp_path: Path) -> None:
    engine = Scripted(policy, lambda asked: asked)
    both = QUICK.model_copy(update={"conditions": ["policy", "guidance"]})
    evaluate_steering(policy, PROMPTS, both, tmp_path, engine=engine)
    assert engine.answered == len(PROMPTS) * (5 + 5)
    drawn = both.model_copy(update={"draws": 7})
    evaluate_steering(policy, PROMPTS, drawn, tmp_path, engine=engine)
    assert engine.answered == len(PROMPTS) * (5 + 5)
    stronger = drawn.model_copy(update={"guidance": 3.0})
    evaluate_steering(policy, PROMPTS, stronger, tmp_path, engine=engine)
    assert engine.answered == len(PROMPTS) * (5 + 5 + 5)


def test_other_words_leave_the_answers_to_a_prompt(policy: SteerModel, tmp_path: Path) -> None:
    """Words that are not asked for cost nothing, new ones the two ends of the scale, and no answer is taken for that to
    other words.
    """
    engine = Scripted(policy, lambda asked: asked)
    asked_so = QUICK.model_copy(update={"paraphrases": 1})
    for ways, settings, answers in (
        (("Why?",), QUICK, 5),
        (("Why?", "For what reason?"), QUICK, 5),
        (("Why?", "For what reason?"), asked_so, 5 + 2),
        (("Why?", "How come?"), asked_so, 5 + 2 + 2),
    ):
        evaluate_steering(policy, [ways], settings, tmp_path, engine=engine)
        assert engine.answered == answers
    rows = [json.loads(line) for line in (tmp_path / "answers.jsonl").read_text().splitlines()]
    assert {row["prompt_text"] for row in rows} == {"Why?", "For what reason?", "How come?"}
    assert [row["measured"] is None for row in rows] == [row["prompt_text"] == "For what reason?" for row in rows]


def test_another_base_in_the_same_place_answers_anew(tmp_path: Path) -> None:
    """In words it answers itself; of the policy's own answers it only says how likely they are."""

    def base(width: int) -> None:
        shutil.rmtree(tmp_path / "base", ignore_errors=True)
        save_base(tmp_path / "base", TOKENIZERS["chatml"](), "llama", intermediate_size=width)

    base(32)
    model = new_model("policy", tmp_path / "base", STEERLM)
    policy = replace(model, info=replace(model.info, provenance={"base": str(tmp_path / "base")}))
    engine, digests, answers, likely = Scripted(policy, lambda asked: asked), [], [], []
    settings = QUICK.model_copy(update={"conditions": ["policy", "words"], "max_tokens": 3, "engine": "torch"})
    for width in (32, 48):
        base(width)
        for chosen in (settings, QUICK.model_copy(update={"perplexity": True})):
            record = evaluate_steering(policy, PROMPTS, chosen, tmp_path / str(chosen.perplexity), engine=engine)
            assert record["base_digest"] == weights_digest(tmp_path / "base")
            digests.append(record["base_digest"])
        likely.append(record["conditions"]["policy"]["attributes"]["verbosity"]["curves"]["perplexity"])
        rows = [json.loads(line) for line in (tmp_path / "False" / "answers.jsonl").read_text().splitlines()]
        answers.append([row["text"] for row in rows if row["condition"] == "words"])
    assert len(set(digests)) == 2
    assert len(answers[0]) == len(answers[1]) == len(PROMPTS) * 5
    assert answers[0] != answers[1]
    assert likely[0] != likely[1]
    assert engine.answered == 2 * len(PROMPTS) * 5


class Stopping(Scripted):
    """Answers what was asked for last first; fails after so many answers."""

    def __init__(self, model: SteerModel, most: int = 99) -> None:
        super().__init__(model, lambda asked: asked)
        self.most = most

    def submit(self, requests: Sequence[Request], deliver: Deliver) -> Callable[[], None]:
        pieces: list[Any] = []
        cancel = super().submit(requests, pieces.append)
        for piece in pieces[::-1][: self.most]:
            deliver(piece)
        if self.most < len(pieces):
            deliver(EngineError("stopped"))
        return cancel


def test_a_run_that_is_stopped_goes_on(policy: SteerModel, tmp_path: Path) -> None:
    """With 11 of 30 answers there; those under other settings stay until there are all in their place."""
    whole = evaluate_steering(policy, PROMPTS, QUICK, tmp_path / "a", engine=Stopping(policy))
    other = QUICK.model_copy(update={"max_tokens": 80})
    evaluate_steering(policy, PROMPTS, other, tmp_path / "b", engine=Stopping(policy))
    with pytest.raises(EngineError, match="stopped"):
        evaluate_steering(policy, PROMPTS, QUICK, tmp_path / "b", engine=Stopping(policy, 11))
    assert len((tmp_path / "b" / "answers.jsonl").read_text().splitlines()) == 30 + 11
    engine = Stopping(policy)
    assert evaluate_steering(policy, PROMPTS, QUICK, tmp_path / "b", engine=engine) == whole
    assert engine.answered == 30 - 11
    assert (tmp_path / "b" / "answers.jsonl").read_text() == (tmp_path / "a" / "answers.jsonl").read_text()


def test_answers_are_kept_as_they_come(policy: SteerModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In eights of thirty: the files at which a kill could have left the run."""
    monkeypatch.setattr(steering, "_KEPT_ANSWERS", 8)
    add, folder = ConditionAnswers.add, tmp_path / "run"

    def copied(self: ConditionAnswers, *args: Any) -> None:
        add(self, *args)
        rows = (folder / "answers.jsonl").read_bytes()
        (tmp_path / str(rows.count(b"\n"))).mkdir(exist_ok=True)
        (tmp_path / str(rows.count(b"\n")) / "answers.jsonl").write_bytes(rows)

    with monkeypatch.context() as patched:
        patched.setattr(ConditionAnswers, "add", copied)
        evaluate_steering(policy, PROMPTS, QUICK, folder, engine=Scripted(policy, lambda asked: asked))
    assert {path.name for path in tmp_path.iterdir()} == {"run", "8", "16", "24", "30"}
    for there in (8, 16, 24, 30):
        engine = Scripted(policy, lambda asked: asked)
        evaluate_steering(policy, PROMPTS, QUICK, tmp_path / str(there), engine=engine)
        assert engine.answered == 30 - there


class Diverse(Scripted):
    """Ends in any order, with another text for each seed."""

    def __init__(self, model: SteerModel, order: int) -> None:
        super().__init__(model, lambda asked: asked)
        self.order = random.Random(order)

    def submit(self, requests: Sequence[Request], deliver: Deliver) -> Callable[[], None]:
        pieces: list[Any] = []
        cancel = super().submit(requests, pieces.append)
        self.order.shuffle(pieces)
        for piece in pieces:
            deliver(piece)
        return cancel

    def text(self, request: Request) -> str:
        return " ".join(random.Random(request.sampling.seed).choices(["salt", "sea", "rock", "why", "rain"], k=6))


def test_the_nearest_is_taken_whatever_comes_first(
    policy: SteerModel, judge_directory: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    judge = load_model(judge_directory, "attribute-model")
    settings = QUICK.model_copy(update={"conditions": ["verified"]})
    texts = []
    for order, together in ((0, 64), (1, 7), (2, 1)):
        monkeypatch.setattr(conditions, "_CHOSEN_TOGETHER", together)
        folder = tmp_path / str(order)
        evaluate_steering(policy, PROMPTS, settings, folder, Judges(judge), engine=Diverse(policy, order))
        rows = [json.loads(line) for line in (folder / "answers.jsonl").read_text().splitlines()]
        texts.append([(row["prompt"], row["asked"], row["text"]) for row in rows])
    assert len({text for *_, text in texts[0]}) > 15
    assert texts[0] == texts[1] == texts[2]


def test_two_runs_do_not_share_a_folder(policy: SteerModel, tmp_path: Path) -> None:
    """The second is told so, and the first is none the worse; when it is done, the folder is free."""
    engine, said = Scripted(policy, lambda asked: asked), list[str]()
    longer = QUICK.model_copy(update={"max_tokens": 80})

    def say(text: str) -> None:
        said.append(text)
        with pytest.raises(DataError, match=r"answers\.jsonl: another process is writing this file; wait for it"):
            evaluate_steering(policy, PROMPTS, longer, tmp_path, engine=engine)

    evaluate_steering(policy, PROMPTS, QUICK.model_copy(update={"max_prompts": 5}), tmp_path, engine=engine, say=say)
    assert any("measuring" in line for line in said)
    assert engine.answered == 25
    evaluate_steering(policy, PROMPTS, longer, tmp_path, engine=engine)
    assert {path.name for path in tmp_path.iterdir()} == {"answers.jsonl", "steering.json"}
