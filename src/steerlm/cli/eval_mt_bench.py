"""`steerlm eval mt-bench run|answer|judge|score`: two-turn answers, a judge, and tables from its judgments."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

from cyclopts import App, Parameter
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from steerlm.card import refresh_card
from steerlm.cli.data_views import stdout
from steerlm.errors import ConfigError, DataError
from steerlm.evaluation.figures import has_matplotlib
from steerlm.evaluation.mt_bench import answers as answering
from steerlm.evaluation.mt_bench.client import Failure, Usage
from steerlm.evaluation.mt_bench.judge import JudgeReport, check_judging, judge_answers
from steerlm.evaluation.mt_bench.layouts import PairJudgment, Row, SingleJudgment, read_judgments
from steerlm.evaluation.mt_bench.matches import Answers, load_answers
from steerlm.evaluation.mt_bench.pairs import win_rates
from steerlm.evaluation.mt_bench.questions import Benchmark, load_benchmark
from steerlm.evaluation.mt_bench.report import Report, radar
from steerlm.evaluation.mt_bench.scores import Duplicates, scores, steering_differences
from steerlm.evaluation.mt_bench.served import check_weights
from steerlm.evaluation.mt_bench.settings import AnswerSettings, BenchSettings, JudgeSettings
from steerlm.evaluation.records import RADAR, evaluation_folder, write_record
from steerlm.files import json_text, write_json
from steerlm.models.directory import ModelInfo

mt_bench_app = App(
    name="mt-bench",
    help="MT-Bench: 80 two-turn questions, answers of any OpenAI-compatible server, graded by a language model.",
)
_Flag = Annotated[bool, Parameter(negative=())]
_Json = Annotated[bool, Parameter(name="--json", negative=())]
_Bench = Annotated[BenchSettings | None, Parameter(name="*")]
_Answers = Annotated[AnswerSettings | None, Parameter(name="*")]
_Judge = Annotated[JudgeSettings | None, Parameter(name="*")]
_Settings = Annotated[list[str] | None, Parameter(name=["--setting"])]


@mt_bench_app.command(name="run")
def run_command(
    model: str,
    *,
    out: Path,
    name: str | None = None,
    setting: _Settings = None,
    bench: _Bench = None,
    answers: _Answers = None,
    judging: _Judge = None,
    fresh: _Flag = False,
    json_: _Json = False,
    card: Path | None = None,
) -> None:
    """Answer, judge and score in one go.

    steerlm eval mt-bench run policy --out runs/mt-bench --setting default --setting verbosity=0 --judge gpt-4

    Whatever was done before a stop or a kill is kept when the same command is given again. OUT gets FastChat's
    folders model_answer and model_judgment, the scores in mt_bench.json, and a radar plot in mt_bench.png.

    Parameters
    ----------
    model
        Name of the judged model, as its server knows it.
    out
        Directory of answers, judgments and scores.
    name
        Name of the model in files and tables; without one, MODEL.
    setting
        Attribute values to answer with, such as verbosity=0,humor=4 ("none" leaves one unset), or default for the
        server's own. May be repeated: every setting is judged like a model of its own, and compared with the default.
    fresh
        Throw away judgments of other answers, references, prompts or settings of the judge than these, and of answers
        that are no longer there.
    json_
        Print the scores as JSON.
    card
        Directory of the policy that was served: its model card then shows the scores, which are kept in its folder
        `evaluation`.
    """
    if card:
        ModelInfo.load(card, "policy")  # what is no policy is refused before anything is paid for
    loaded = load_benchmark(bench or BenchSettings())
    chosen = judging or JudgeSettings()
    if card and chosen.mode != "single":
        raise ConfigError(
            f"--card shows grades of single answers, which mode {chosen.mode} does not give; leave it out"
        )
    models = [item.model(name or model) for item in _steering(setting)]
    others = [chosen.baseline] if chosen.baseline is not None and chosen.baseline not in models else []
    known = [*models, *(load_answers(out, others) if others else [])]
    check_judging(chosen, known)
    _answer(loaded, model, out, name, setting, answers)
    if card:  # before the judge is paid
        check_weights(_rows(load_answers(out, models), loaded), card)
    file = _judge(loaded, out, models, chosen, fresh)
    singles, pairs = read_judgments([file])
    # The folder may hold more than this command is about: other models, questions of a larger benchmark.
    asked = loaded.categories
    singles = [row for row in singles if row.model in models and row.question_id in asked]
    pairs = [
        row
        for row in pairs
        if set(row.models) <= set(known) and chosen.baseline in (None, *row.models) and row.question_id in asked
    ]
    report = _report([file], singles, pairs, loaded, "all", False)
    _show(report, out, json_)
    _to_card(report, singles, card)


@mt_bench_app.command(name="answer")
def answer_command(
    model: str,
    *,
    out: Path,
    name: str | None = None,
    setting: _Settings = None,
    bench: _Bench = None,
    answers: _Answers = None,
) -> None:
    """Let a served model answer the questions, at one attribute setting or at several.

    steerlm eval mt-bench answer policy --out runs/mt-bench --setting verbosity=0 --setting verbosity=4

    Answers go to OUT/model_answer/NAME.jsonl, at a setting NAME@verbosity=0.jsonl, in FastChat's layout. The second
    turn sees the first and what the model answered to it. Answers that are there are kept.

    Parameters
    ----------
    model
        Name of the judged model, as its server knows it.
    out
        Directory of answers, judgments and scores.
    name
        Name of the model in files and tables; without one, MODEL.
    setting
        Attribute values to answer with, such as verbosity=0,humor=4 ("none" leaves one unset), or default for the
        server's own. May be repeated.
    """
    _answer(load_benchmark(bench or BenchSettings(), judging=False), model, out, name, setting, answers)


@mt_bench_app.command(name="judge")
def judge_command(
    *,
    out: Path,
    models: list[str] | None = None,
    bench: _Bench = None,
    judging: _Judge = None,
    fresh: _Flag = False,
) -> None:
    """Let a judge grade answers, or compare them in pairs.

    steerlm eval mt-bench judge --out runs/mt-bench --judge gpt-4 --price-prompt 30 --price-completion 60

    Answers are read from OUT/model_answer (FastChat's published ones too); judgments go to
    OUT/model_judgment/JUDGE_single.jsonl or JUDGE_pair.jsonl. What is judged already is not asked, nor paid for, again.

    Parameters
    ----------
    out
        Directory of answers and judgments.
    models
        Models to judge; without any, all that have answers. May be repeated.
    fresh
        Throw away judgments of other answers, references, prompts or settings of the judge than these, and of answers
        that are no longer there.
    """
    _judge(load_benchmark(bench or BenchSettings()), out, models or [], judging, fresh)


@mt_bench_app.command(name="score")
def score_command(
    *files: Path,
    bench: str | None = None,
    duplicates: Duplicates = "all",
    recorded: _Flag = False,
    out: Path | None = None,
    json_: _Json = False,
    card: Path | None = None,
) -> None:
    """Tables from judgment files alone, ours or FastChat's.

    steerlm eval mt-bench score runs/mt-bench/model_judgment/gpt-4_single.jsonl

    A rating is the first [[number]] of a judgment's text, else the first [number]; without one the row is left out.
    Scores are means over all rows of both turns. Intervals are 95% bootstrap, over questions.

    Parameters
    ----------
    files
        Files of single or pairwise judgments.
    bench
        Read categories from a benchmark (as for judging), instead of from MT-Bench's question numbers.
    duplicates
        Whether all rated judgments of a turn count, as in FastChat's tables, or the last; of a pair, always the last.
    recorded
        Take scores and winners as the rows record them, not from the judgments' texts.
    out
        Directory for mt_bench.json and the radar plot mt_bench.png.
    json_
        Print the scores as JSON.
    card
        Directory of the policy that was judged: its model card then shows the scores, which are kept in its folder
        `evaluation`.
    """
    if not files:
        raise ConfigError("name the judgment files to score")
    loaded = load_benchmark(BenchSettings(bench=bench), judging=False) if bench else None
    singles, pairs = read_judgments(files)
    if not singles and not pairs:
        raise DataError(f"{files[0]}: no judgments in it")
    report = _report(files, singles, pairs, loaded, duplicates, recorded)
    _show(report, out, json_)
    _to_card(report, singles, card)


def _answer(
    bench: Benchmark,
    model: str,
    out: Path,
    name: str | None,
    steering: list[str] | None,
    settings: AnswerSettings | None,
) -> None:
    """Answer, and say what was done."""
    with _progress("answers") as progress:
        report = answering.answer_questions(
            bench.questions, model, settings or AnswerSettings(), out, _steering(steering), name, progress
        )
    usage = _tokens(report.usage)
    _say(f"{report.made} questions answered ({report.cut} cut at the limit; {usage}), {report.kept} were there")
    _say_refused(report.refused, "answers lack turns that the server refused")


def _steering(settings: list[str] | None) -> list[answering.Setting]:
    return [answering.parse_setting(text) for text in settings or [answering.DEFAULT]]


def _judge(bench: Benchmark, out: Path, models: list[str], settings: JudgeSettings | None, fresh: bool) -> Path:
    """Judge, and say what was done; the file of the judgments."""
    chosen = settings or JudgeSettings()
    # Without names all are loaded, and the baseline with them.
    names = [*models, chosen.baseline] if models and chosen.baseline is not None else models
    with _progress("judgments") as progress:
        report = judge_answers(bench, load_answers(out, names), chosen, out, fresh, progress)
    _say(_judged(report, priced=bool(chosen.price_prompt or chosen.price_completion)))
    _say_refused(report.refused, "judgments are refused by the judge, and missing in the scores")
    return report.file


def _judged(report: JudgeReport, priced: bool) -> str:
    cost = f", cost {report.cost:.2f}" if priced else ""
    whole = f", cost {report.whole_cost:.2f}" if priced else ""
    return (
        f"{report.file}: {report.made} judgments made ({report.unrated} without a rating; {_tokens(report.usage)}"
        f"{cost}), {report.kept} were there; all together {_tokens(report.whole_usage)}{whole}"
    )


def _say_refused(refused: Sequence[Failure[Any]], what: str) -> None:
    if refused:
        _say(f"{len(refused)} {what}; the first: {refused[0]}")


def _tokens(usage: Usage) -> str:
    missing = f" and {usage.uncounted} without a count of tokens" if usage.uncounted else ""
    return f"{usage.prompt} prompt tokens, {usage.completion} written{missing}"


def _report(
    files: Sequence[Path],
    singles: list[SingleJudgment],
    pairs: list[PairJudgment],
    bench: Benchmark | None,
    duplicates: Duplicates,
    recorded: bool,
) -> Report:
    found = scores(singles, bench.categories if bench else None, duplicates, recorded)
    rates, biases = win_rates(pairs, recorded)
    rules = {"duplicates": duplicates, "recorded": recorded, "benchmark": dict(bench.digests) if bench else None}
    return Report(found, steering_differences(found), rates, biases, files, rules)


def _show(report: Report, out: Path | None, as_json: bool) -> None:
    if out is not None:
        write_json(out / "mt_bench.json", report.to_dict())
        if not _draw(report, out) and report.scores:
            _say("no radar plot: matplotlib is not installed (pip install 'steerlm[report]')")
        _say(f"scores in {out / 'mt_bench.json'}")
    if as_json:
        print(json_text(report.to_dict()))
        return
    console = stdout()
    for table in report.tables():
        console.print(table)
    for note in report.notes():
        console.print(note, highlight=False, markup=False)


def _draw(report: Report, folder: Path) -> bool:
    """Whether there is a radar plot of these scores in the folder; one of others is removed."""
    path = folder / RADAR
    path.unlink(missing_ok=True)
    if drawn := bool(report.scores) and has_matplotlib():
        radar(report.scores, path)
    return drawn


def _say(text: str) -> None:
    Console(stderr=True, soft_wrap=True).print(text, highlight=False, markup=False)


@contextmanager
def _progress(title: str) -> Iterator[answering.Progress]:
    """Shows requests done and the time left, on a terminal."""
    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task(title, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


def _rows(answers: Answers, bench: Benchmark) -> Iterator[tuple[str, Row]]:
    questions = bench.categories
    return (
        (model, answer.row)
        for model, found in answers.items()
        for number, answer in found.items()
        if number in questions
    )


def _to_card(report: Report, singles: Sequence[SingleJudgment], policy: Path | None) -> None:
    """Keep the scores with the policy, as those of its weights, and show them on its card. Raises `DataError` where
    the judgments that they are of are known to be of other weights.
    """
    if policy is None:
        return
    if not report.scores:
        raise ConfigError("--card: there are no grades of single answers among the judgments, which a card shows")
    if maybe := check_weights(((row.model, row.row) for row in singles), policy):
        _say(f"--card {policy}: no answers are known to be of its weights; taken to be it: {' or '.join(maybe)}")
    record = {"kind": "mt-bench", "model": ModelInfo.load(policy, "policy").fingerprint, **report.to_dict()}
    folder = evaluation_folder(policy)
    path = write_record(folder, "mt_bench", record)
    _draw(report, folder)
    refresh_card(policy, _say)
    _say(f"scores for the card in {path}")
