"""The evaluation of attribute models: of one that is right, of one whose outputs are mixed up, of one that is deaf."""

from __future__ import annotations

import io
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from rated import SETTINGS, clipped, rated_by, unrated, with_ratings
from steerlm.annotation import Scorer
from steerlm.attributes import STEERLM, Schema
from steerlm.cli.main import run
from steerlm.conversation import Conversation, Message, Role
from steerlm.errors import DataError
from steerlm.evaluation.attribute_model import evaluate_attributes
from steerlm.evaluation.attribute_tables import evaluation_view
from steerlm.evaluation.records import distinct_names
from steerlm.files import write_conversations
from steerlm.models.load import SteerModel, head_of


def test_a_judge_that_is_right(judge: SteerModel) -> None:
    record = evaluate_attributes(judge, rated_by(unrated(30), clipped, judge), SETTINGS)
    assert record["responses"] == 90
    assert record["conversations"] == 30
    assert set(record["attributes"]) == set(STEERLM.names)
    for figures in record["attributes"].values():
        assert set(figures["sources"]) == {"forum", "survey"}
        assert figures["sources"]["forum"]["n"] == figures["sources"]["survey"]["n"] == 45
        assert sum(row["n"] for row in figures["calibration"]) == 90
        counts = np.array(figures["confusion"])
        assert counts.sum() == 90
        assert counts.trace() == 90
        assert figures["overall"]["model"]["spearman"]["value"] > 0.7
    assert not record["swapped_outputs"]["found"]
    assert record["baselines_fitted_on"].startswith("the evaluated data")
    assert any(figures["verdict"] == "beats both baselines" for figures in record["attributes"].values())
    assert all(figures["ranking"]["model"]["value"] > 0.9 for figures in record["attributes"].values())
    assert json.dumps(record["settings"])


def test_all_intervals_are_those_of_the_seed(judge: SteerModel) -> None:
    conversations = rated_by(unrated(20), lambda values: {"quality": clipped(values)["quality"]}, judge)
    settings = SETTINGS.model_copy(update={"invariance": 0})
    one, same, other = (
        evaluate_attributes(judge, conversations, settings.model_copy(update={"seed": seed}))["attributes"]["quality"]
        for seed in (0, 0, 1)
    )
    assert one == same
    for kind in ("calibration", "ranking", "overall"):
        assert one[kind] != other[kind]


def test_figures_by_hand(judge: SteerModel) -> None:
    """Everybody is half a point stricter than the judge: errors of one half, and correlations of one."""

    def stricter(values: dict[str, float]) -> dict[str, float]:
        return {"quality": min(max(values["quality"] * 0.1 + 1.5, 0.0), 4.0)}

    conversations = rated_by(unrated(12), stricter, judge)
    figures = evaluate_attributes(judge, conversations, SETTINGS)["attributes"]["quality"]["overall"]
    scores = [
        values[index]["quality"]
        for conversation, values in zip(conversations, Scorer(judge, SETTINGS).score(conversations).values, strict=True)
        for index in conversation.responses
    ]
    errors = np.array(scores) - (np.array(scores) * 0.1 + 1.5)
    assert figures["model"]["mae"]["value"] == pytest.approx(np.abs(errors).mean())
    assert figures["model"]["rmse"]["value"] == pytest.approx(np.sqrt((errors**2).mean()))
    assert figures["model"]["pearson"]["value"] == pytest.approx(1)
    assert figures["model"]["spearman"]["value"] == pytest.approx(1)


def test_outputs_in_the_wrong_order_are_exposed(judge: SteerModel) -> None:
    conversations = rated_by(unrated(60), clipped, judge)
    order = np.roll(np.arange(len(STEERLM)), 1)
    head = head_of(judge.network)
    head.weight.data = head.weight.data[order].clone()
    record = evaluate_attributes(judge, conversations, SETTINGS)
    swapped = record["swapped_outputs"]
    assert swapped["found"]
    # The output of each attribute now holds that of the one before it.
    names = STEERLM.names
    assert swapped["order"]["quality"] == names[1]
    assert swapped["order"][names[-1]] == names[0]
    verdicts = [figures["verdict"] for figures in record["attributes"].values()]
    assert sum(verdict.startswith("does not beat") for verdict in verdicts) > len(verdicts) / 2


def test_a_judge_of_nothing_but_length_does_not_beat_the_ridge(judge: SteerModel) -> None:
    """People rate by length, the judge rates at random: the ridge knows, and the model is said not to beat it."""
    conversations = unrated(40)
    rated = [with_ratings(c, lambda message: {"verbosity": min(len(message.text) / 20, 4.0)}) for c in conversations]
    figures = evaluate_attributes(judge, rated[20:], SETTINGS, train=rated[:20])
    assert figures["baselines_fitted_on"] == "the training data"
    verbosity = figures["attributes"]["verbosity"]
    assert verbosity["verdict"] == "does not beat the mean rating and a ridge regression on length and text statistics"
    assert verbosity["overall"]["ridge"]["pearson"] > 0.95
    assert verbosity["ranking"]["length"]["value"] == 1.0
    assert verbosity["ranking"]["beats"] == {"ridge": False, "length": False}
    gap = verbosity["ranking"]["model"]["value"] - verbosity["ranking"]["length"]["value"]
    assert verbosity["ranking"]["gain"]["length"]["value"] == pytest.approx(gap)
    shown = Console(record=True, width=120, file=io.StringIO())
    shown.print(evaluation_view(figures))
    text = shown.export_text()
    assert "verbosity, ranking: does not beat a ridge regression" in text
    beside = next(line for line in text.partition("Beside the baselines")[2].splitlines() if "verbosity" in line)
    overall = verbosity["overall"]
    wanted = [overall["model"]["mae"]["value"], overall["mean"]["mae"], overall["ridge"]["mae"]]
    wanted += [overall["model"]["pearson"]["value"], overall["ridge"]["pearson"]]
    assert [float(cell) for cell in beside.split()[1:]] == pytest.approx(wanted, abs=0.005)


def test_each_source_has_its_verdict(judge: SteerModel) -> None:
    """In the forum people rate by length, in the survey as the judge does."""
    conversations = rated_by(unrated(80), lambda values: {"humor": clipped(values)["humor"]}, judge)
    rated = [
        with_ratings(c, lambda message: {"humor": min(len(message.text) / 20, 4.0)}) if c.source == "forum" else c
        for c in conversations
    ]
    sources = evaluate_attributes(judge, rated, SETTINGS)["attributes"]["humor"]["sources"]
    assert sources["survey"]["verdict"] == "beats both baselines"
    assert sources["forum"]["beats"]["ridge"] is False


def test_the_same_prompt_in_two_conversations(judge: SteerModel) -> None:
    """Each prompt stands in two conversations with one answer each: they are ranked, and drawn together. Another system
    text makes another prompt.
    """
    pairs = rated_by(unrated(12, answers=2), clipped, judge)
    halves = [
        replace(pair, id=f"{pair.id}-{k}", messages=(pair.messages[0], pair.messages[k]))
        for pair in pairs
        for k in (1, 2)
    ]
    whole, split = (evaluate_attributes(judge, data, SETTINGS)["attributes"]["quality"] for data in (pairs, halves))
    assert split["ranking"]["pairs"] == whole["ranking"]["pairs"] > 0
    assert split["overall"]["model"]["rmse"] == pytest.approx(whole["overall"]["model"]["rmse"])
    assert (whole["overall"]["conversations"], split["overall"]["conversations"]) == (12, 24)
    others = [replace(half, system=half.id) for half in halves]
    assert evaluate_attributes(judge, others, SETTINGS)["attributes"]["quality"]["ranking"] is None


def test_without_a_baseline_there_is_no_verdict(judge: SteerModel) -> None:
    """The training data rate another attribute; then there are few conversations."""
    rated = [with_ratings(c, lambda message: {"humor": len(message.text) % 5}) for c in unrated(20)]
    train = [with_ratings(c, lambda message: {"quality": 2.0}) for c in unrated(10)]
    record = evaluate_attributes(judge, rated, SETTINGS, train=train)
    assert record["attributes"]["humor"]["verdict"] == "not compared"
    shown = Console(record=True, width=120, file=io.StringIO())
    shown.print(evaluation_view(record))
    assert "humor: not compared" in shown.export_text()
    for known in (None, rated):
        record = evaluate_attributes(judge, rated[:1], SETTINGS, train=known)
        assert record["attributes"]["humor"]["verdict"] == "too few to compare (1 independent of at least 20)"


def test_names_of_files_differ() -> None:
    paths = [Path("a/pref.jsonl"), Path("sub/a/pref.jsonl"), Path("/data/sub/pref.jsonl"), Path("b/other.jsonl")]
    assert list(distinct_names(paths).values()) == ["a/pref.jsonl", "sub/a/pref.jsonl", "sub/pref.jsonl", "other.jsonl"]
    assert distinct_names([paths[0], paths[0]]) == {paths[0]: "pref.jsonl"}


def test_nothing_to_compare_with(judge: SteerModel) -> None:
    with pytest.raises(DataError, match="no response is rated on any of quality"):
        evaluate_attributes(judge, unrated(3), SETTINGS)
    with pytest.raises(DataError, match="nothing to evaluate on"):
        evaluate_attributes(judge, [], SETTINGS)


def test_the_command(
    judge_directory: Path, judge: SteerModel, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_conversations(tmp_path / "rated.jsonl", rated_by(unrated(12), clipped, judge))
    rows = [
        {"prompt": "Why is the sea salty?", "chosen": "Rivers carry salt.", "rejected": "No.", "subset": "easy"},
        {"prompt": "Why?", "chosen": "Because.", "rejected": "It is so.", "subset": "hard"},
    ]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    files = [str(tmp_path / name) for name in ("rated.jsonl", "pairs.jsonl")]
    flags = ["--resamples", "100", "--context", "512", "--invariance", "4", "--weights.humor", "2"]
    assert run(["eval", "attributes", str(judge_directory), *files, *flags]) == 0
    text = capsys.readouterr().out
    assert run(["eval", "attributes", str(judge_directory), files[1], "--weights.helpfullness", "1"]) == 2
    assert "does not know helpfullness" in capsys.readouterr().err
    assert "Agreement with people" in text
    assert "pairs.jsonl" in text
    record = json.loads((judge_directory / "evaluation" / "attributes.json").read_text())
    assert record["preferences"]["pairs.jsonl"]["weights"] == {"humor": 2.0}
    assert record["preferences"]["pairs.jsonl"]["pairs"] == 2
    assert [item["name"] for item in record["data"]] == ["rated.jsonl", "pairs.jsonl"]
    assert record["steerlm"]
    assert (
        run(["eval", "attributes", str(judge_directory), files[0], *flags[:4], "--json", "--out", str(tmp_path)]) == 0
    )
    assert json.loads(capsys.readouterr().out)["responses"] == 36
    assert (tmp_path / "attributes.json").is_file()


def test_what_is_left_out_or_cut_is_said_and_kept(
    judge_directory: Path, judge: SteerModel, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Ten pairs of Open Assistant's, to one of which a second answer was deleted; and a second turn that has no room
    for the first.
    """

    def row(name: str, parent: str | None, tree: str, **more: object) -> str:
        role = "assistant" if parent else "prompter"
        fields = {"message_id": name, "parent_id": parent, "message_tree_id": tree, "role": role, "text": "salt " * 3}
        return json.dumps({**fields, "lang": "en", **more}) + "\n"

    labels = {"name": ["quality", "humor"], "value": [0.75, 0.5], "count": [3, 3]}
    rows = [row(f"q{k}", None, f"q{k}") + row(f"a{k}", f"q{k}", f"q{k}", labels=labels) for k in range(10)]
    rows.append(row("gone", "q0", "q0", labels=labels, deleted=True))
    (tmp_path / "oasst.jsonl").write_text("".join(rows))
    turns = ("salty " * 60, "rivers", "why", "carry")
    roles: tuple[Role, ...] = ("user", "assistant", "user", "assistant")
    messages = [
        Message(role, text, k - 1 if k else None) for k, (role, text) in enumerate(zip(roles, turns, strict=True))
    ]
    messages[3] = replace(messages[3], ratings={"quality": 2.0})
    write_conversations(tmp_path / "long.jsonl", [Conversation("long", tuple(messages))])
    files = [str(tmp_path / name) for name in ("oasst.jsonl", "long.jsonl")]
    flags = ["--resamples", "100", "--context", "80", "--invariance", "0", "--out", str(tmp_path)]
    assert run(["eval", "attributes", str(judge_directory), *files, *flags]) == 0
    said = capsys.readouterr().err
    record = json.loads((tmp_path / "attributes.json").read_text())
    assert "left out 1 messages: deleted" in said
    assert "1 responses are scored without their oldest turns" in said
    assert record["truncated"] == 1
    assert record["data"][0]["left_out"]["messages"] == {"deleted": 1}
    assert str(tmp_path) not in json.dumps(record["data"])


def test_a_model_of_some_attributes(judge: SteerModel) -> None:
    """Ratings of others are no fault; they are not evaluated."""
    few = Schema(tuple(item for item in STEERLM if item.name in ("humor", "verbosity")))
    head = head_of(judge.network)
    head.weight.data = head.weight.data[[2, 8]].clone()
    model = replace(judge, info=replace(judge.info, schema=few), renderer=replace(judge.renderer, schema=few))
    rated = [with_ratings(c, lambda _: {"humor": 1.0, "quality": 3.0}) for c in unrated(5)]
    assert list(evaluate_attributes(model, rated, SETTINGS)["attributes"]) == ["humor"]


def test_data_of_the_hub_are_imported_first(judge_directory: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["eval", "attributes", str(judge_directory), "hub:OpenAssistant/oasst1"]) == 2
    assert "hub:OpenAssistant/oasst1: only files are evaluated on" in capsys.readouterr().err
