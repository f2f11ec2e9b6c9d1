"""What is put before the judge: one answer or two, with the prompt that MT-Bench has for the category and turn."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

from steerlm.errors import ConfigError, DataError
from steerlm.evaluation.mt_bench.answers import ANSWERS
from steerlm.evaluation.mt_bench.layouts import TURNS, Answer, file_name, read_answers
from steerlm.evaluation.mt_bench.questions import REFERENCED, Benchmark, JudgePrompt, Question, Reference

Answers = Mapping[str, Mapping[int, Answer]]


@dataclass(frozen=True, slots=True)
class Match:
    """A judgment to be made: of one model's answer (`models` has one name) or of two models' answers."""

    question: Question
    turn: int
    models: tuple[str, ...]
    prompt: JudgePrompt
    reference: Reference | None
    answers: tuple[Answer, ...]

    def user_prompt(self, swapped: bool = False) -> str:
        """The text for the judge; swapped, the second answer comes first. Raises `DataError` for an unfit template."""
        try:
            return self.prompt.template.format_map(self._fields(swapped))
        except (KeyError, IndexError, ValueError) as error:
            raise DataError(f"judge prompt {self.prompt.name}: its template cannot be filled: {error!r}") from error

    def _fields(self, swapped: bool) -> dict[str, str]:
        answers = self.answers[::-1] if swapped else self.answers
        sides = [""] if len(answers) == 1 else ["_a", "_b"]
        fields = {"question": self.question.turns[0]}
        for number in range(1, self.turn + 1):
            fields[f"question_{number}"] = self.question.turns[number - 1]
            for side, answer in zip(sides, answers, strict=True):
                fields[f"answer{side}_{number}"] = answer.turns[number - 1]
            if self.reference is not None:
                fields[f"ref_answer_{number}"] = self.reference.turns[number - 1]
        for side, answer in zip(sides, answers, strict=True):
            fields[f"answer{side}"] = answer.turns[0]
        return fields

    def __str__(self) -> str:
        return f"question {self.question.id}, turn {self.turn}, {' and '.join(self.models)}"


def load_answers(out: Path, models: Sequence[str] = ()) -> dict[str, dict[int, Answer]]:
    """Answers by model and question from `out`/model_answer: of these models, or of all that are there.

    Raises `DataError` where there are none.
    """
    folder = out / ANSWERS
    paths = [folder / f"{file_name(model)}.jsonl" for model in models] or sorted(folder.glob("*.jsonl"))
    found: dict[str, dict[int, Answer]] = {}
    for path in paths:
        for answer in read_answers(path):
            # In FastChat it is the file's name that names the model; published files differ in what rows say.
            name = answer.model if file_name(answer.model) == path.stem else path.stem
            found.setdefault(name, {})[answer.question_id] = answer
    if not found:
        raise DataError(f"{folder}: no answers to judge; make some with: steerlm eval mt-bench answer")
    return found


def single_matches(bench: Benchmark, answers: Answers) -> Iterator[Match]:
    """Every answered turn of every model, for a grade."""
    for model, by_question in answers.items():
        yield from _matches(bench, "single", (model,), (by_question,))


def pair_matches(bench: Benchmark, answers: Answers, baseline: str | None) -> Iterator[Match]:
    """Every answered turn of each model and the baseline, or of all pairs of models; raises as `compared` does."""
    for first, second in compared(list(answers), baseline):
        yield from _matches(bench, "pair", (first, second), (answers[first], answers[second]))


def compared(models: Sequence[str], baseline: str | None) -> list[tuple[str, str]]:
    """The pairs of each model and the baseline, or of all models.

    A pair's names are in order, so that it is the same pair whoever is the baseline: both orders are asked anyway.
    Raises `ConfigError` where there is no such baseline or nothing to compare.
    """
    if baseline is not None and baseline not in models:
        raise ConfigError(f"no answers of the baseline {baseline!r}; there are those of {', '.join(models)}")
    if len(models) < 2:
        raise ConfigError("pairs need the answers of two models; there are those of " + ", ".join(models))
    pairs = (
        combinations(models, 2) if baseline is None else ((model, baseline) for model in models if model != baseline)
    )
    return [(min(pair), max(pair)) for pair in pairs]


def _matches(
    bench: Benchmark, kind: str, models: tuple[str, ...], answers: tuple[Mapping[int, Answer], ...]
) -> Iterator[Match]:
    for question in bench.questions:
        if not all(question.id in by_question for by_question in answers):
            continue
        chosen = tuple(by_question[question.id] for by_question in answers)
        reference = bench.references.get(question.id) if question.category in REFERENCED else None
        for turn in TURNS:
            if all(len(answer.turns) >= turn for answer in chosen):
                prompt = _prompt(bench, kind, reference is not None, turn)
                yield Match(question, turn, models, prompt, reference, chosen)


def _prompt(bench: Benchmark, kind: str, with_reference: bool, turn: int) -> JudgePrompt:
    version = "math-v1" if with_reference else {"single": "v1", "pair": "v2"}[kind]
    name = f"{kind}-{version}{'-multi-turn' if turn == 2 else ''}"
    if name not in bench.prompts:
        raise DataError(f"the judge's prompts have none that is named {name}")
    return bench.prompts[name]
