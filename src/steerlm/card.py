"""The model card: `README.md` as the Hugging Face hub reads it, from what a model directory knows of itself."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCardData

from steerlm.dialects import DIALECTS, Dialect
from steerlm.errors import ConfigError, ModelError
from steerlm.evaluation.records import FIGURES, RADAR, REPORT, ROUNDED, evaluation_folder, read_record
from steerlm.evaluation.steering_words import are_held_out, prompts_title
from steerlm.files import write_text
from steerlm.models.directory import ModelInfo
from steerlm.pages import is_number, page
from steerlm.sources.hub import PREFIX

FILE = "README.md"
MARK = "<!-- Made by `steerlm card` from steerlm.json and the evaluation results"
"""How the line begins that tells a card of ours, with the licence that was given for it and the text's digest."""
_MARK_LINE = re.compile(
    re.escape(MARK) + r"(?:; licence given: (?P<license>.+))?; digest: (?P<digest>[0-9a-f]{16}) -->"
)
_OLD_MARK = f"{MARK}. -->"
"""The whole mark of earlier versions."""
_HUB_LICENSES = frozenset(
    re.findall(
        r"\S+",
        "afl-3.0 agpl-3.0 apache-2.0 apple-amlr apple-ascl artistic-2.0 bigcode-openrail-m bigscience-bloom-rail-1.0 "
        "bigscience-openrail-m bsd bsd-2-clause bsd-3-clause bsd-3-clause-clear bsl-1.0 c-uda cc cc-by-2.0 cc-by-2.5 "
        "cc-by-3.0 cc-by-4.0 cc-by-nc-2.0 cc-by-nc-3.0 cc-by-nc-4.0 cc-by-nc-nd-3.0 cc-by-nc-nd-4.0 cc-by-nc-sa-2.0 "
        "cc-by-nc-sa-3.0 cc-by-nc-sa-4.0 cc-by-nd-4.0 cc-by-sa-3.0 cc-by-sa-4.0 cc0-1.0 cdla-permissive-1.0 "
        "cdla-permissive-2.0 cdla-sharing-1.0 creativeml-openrail-m deepfloyd-if-license ecl-2.0 epl-1.0 epl-2.0 "
        "etalab-2.0 eupl-1.1 eupl-1.2 fair-noncommercial-research-license gemma gfdl gpl gpl-2.0 gpl-3.0 "
        "grok2-community h-research intel-research isc lgpl lgpl-2.1 lgpl-3.0 lgpl-lr llama2 llama3 llama3.1 llama3.2 "
        "llama3.3 llama4 lppl-1.3c mit mpl-2.0 ms-pl ncsa odbl odc-by ofl-1.1 openmdw-1.0 openrail openrail++ osl-3.0 "
        "other pddl postgresql unknown unlicense wtfpl zlib",
    )
)
"""The only values that the hub takes in a card's field `license`."""
_HUB_SOURCE = re.compile(PREFIX + r"([\w-][\w.-]*/[\w-][\w.-]*)")
_HUB_NAMES = {"smollm2": ("HuggingFaceTB/SmolLM2-135M-Instruct", "apache-2.0")}


def write_card(model: str | Path, overwrite: bool = False, license_: str | None = None) -> Path:
    """Write the card of a model directory; returns its path. A licence that was given for the card that is there stays.

    Raises `ModelError` where there is a README.md that somebody has written or edited, unless it may be overwritten,
    `ConfigError` for a licence of several lines.
    """
    if license_ and license_.splitlines() != [license_]:
        raise ConfigError(f"--license {license_!r}: a licence is one line; give its name, such as apache-2.0")
    path = Path(model) / FILE
    if not overwrite and (fault := _not_ours(path)):
        raise ModelError(f"{path} {fault}; move it away, or pass --overwrite")
    given = license_ or _given_license(path)
    write_text(path, _marked(card_text(model, given), given))
    return path


def refresh_card(model: str | Path, say: Callable[[str], None]) -> None:
    """Write the card anew; one that somebody has written or edited stays, and `say` is told."""
    path = Path(model) / FILE
    if fault := _not_ours(path):
        say(f"{path} {fault} and stays as it is; `steerlm card {model} --overwrite` makes it anew")
    else:
        write_card(model)


def _not_ours(path: Path) -> str | None:
    """Why the card is not ours to write over; None where it is, or there is none."""
    if not path.is_file():
        return None
    text = _read(path)
    if MARK not in text:
        return "was not made by steerlm"
    if _OLD_MARK in text:
        return "was made by an earlier version, which did not note by what to tell whether it was edited since,"
    found = _MARK_LINE.search(text)
    same = found and _digest(text.replace(found[0], MARK, 1)) == found["digest"]
    return None if same else "was edited after steerlm made it"


def _given_license(path: Path) -> str | None:
    found = _MARK_LINE.search(_read(path)) if path.is_file() else None
    return found["license"] if found else None


def _read(path: Path) -> str:
    # What somebody has written may be in any encoding; a card of ours is in this one.
    return path.read_text(encoding="utf-8", errors="replace")


def _marked(text: str, given: str | None) -> str:
    """The card with its whole mark in place of the beginning of it."""
    license_ = f"; licence given: {given}" if given else ""
    return text.replace(MARK, f"{MARK}{license_}; digest: {_digest(text)} -->", 1)


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def card_text(model: str | Path, license_: str | None = None) -> str:
    """The card: metadata and text, with the beginning of its mark."""
    info = ModelInfo.load(model)
    name = Path(model).resolve().name
    folder = evaluation_folder(model)
    kinds = ("steering", "attributes", "mt_bench")
    steering, attributes, mt_bench = (_own(info, read_record(folder, kind)) for kind in kinds)
    # What is said of the model is what the policy does, not the base or what else it was compared with.
    policy = _policy(steering)
    names = steering["settings"]["attributes"] if steering and policy else []
    figures = [f"{name}.png" for name in names if (folder / FIGURES / f"{name}.png").is_file()]
    known, known_license = _HUB_NAMES.get(str(info.provenance.get("base")), (info.hub_base, None))
    hub_license, license_name = _license(license_ or known_license)
    data = ModelCardData(
        base_model=known,
        license=hub_license,
        license_name=license_name,
        datasets=[found[1] for name in info.provenance.get("sources", ()) if (found := _HUB_SOURCE.fullmatch(name))]
        or None,
        library_name="peft" if info.base else "transformers",
        pipeline_tag="text-generation" if info.kind == "policy" else "text-classification",
        tags=["steerlm", info.kind, *(["attribute-conditioned"] if info.kind == "policy" else ["reward-model"])],
        model_name=name,
        eval_results=_results(steering, attributes) or None,
    )
    dialect = DIALECTS[info.dialect]
    line = info.schema.label_line(info.schema.defaults)
    text = page(
        "card.md.jinja",
        mark=MARK,
        name=name,
        info=info,
        base=known or info.base_name or "an unnamed base model",
        license=license_ or known_license,
        prompt=prompt_text(dialect, info.system, line if info.kind == "policy" else ""),
        prompt_turns=prompt_text(dialect, info.system, line if info.kind == "policy" else "", turns=2),
        steering=policy,
        steering_record=steering,
        prompts_title=prompts_title(steering) if steering else None,
        agreement=(attributes or {}).get("attributes"),
        attributes_record=attributes,
        rounded=ROUNDED,
        mt_bench=mt_bench,
        mt_bench_categories=_categories(mt_bench),
        radar=f"{folder.name}/{RADAR}" if (folder / RADAR).is_file() else None,
        # A name before @ is that of a model, whatever its settings.
        judged={score["model"].partition("@")[0] for score in mt_bench["scores"]} if mt_bench else {},
        validation=_plain(info.metrics),
        per_attribute=info.metrics.get("attributes", {}),
        settings=_shown_settings(info),
        figures=[f"{folder.name}/{FIGURES}/{figure}" for figure in figures],
        report=f"{folder.name}/{REPORT}" if (folder / REPORT).is_file() else None,
    )
    return f"---\n{data.to_yaml()}\n---\n\n{text}"


def prompt_text(dialect: Dialect, system: str, label_line: str, turns: int = 1) -> str:
    """What the model reads before an answer, with `{prompt}` and `{response}` for what goes there."""
    text = dialect.start
    if system or dialect.empty_system:
        text += dialect.system_open + system.strip() + dialect.system_close
    label = dialect.label_open + label_line + dialect.label_close if label_line else ""
    for turn in range(1, turns + 1):
        number = f" {turn}" if turns > 1 else ""
        text += dialect.glue if turn > 1 else ""
        text += dialect.user_open + f"{{prompt{number}}}" + dialect.user_close + dialect.assistant_open + label
        text += f"{{response{number}}}" + dialect.response_close if turn < turns else ""
    return text


def _own(info: ModelInfo, record: Mapping[str, Any] | None) -> Mapping[str, Any] | None:
    """A result of this very model; one of an earlier state of the directory says nothing of it."""
    return record if record and record.get("model") == info.fingerprint else None


def _policy(steering: Mapping[str, Any] | None) -> Mapping[str, Any] | None:
    return steering["conditions"].get("policy") if steering else None


def _results(steering: Mapping[str, Any] | None, attributes: Mapping[str, Any] | None) -> list[EvalResult]:
    """Figures for the metadata."""
    found = []
    for name, row in (_policy(steering) or {}).get("attributes", {}).items():
        assert steering is not None
        if row.get("within_prompt") and row["within_prompt"]["value"] is not None:
            found.append(
                EvalResult(
                    task_type="text-generation",
                    dataset_type="held-out-prompts" if are_held_out(steering) else "prompts",
                    dataset_name=prompts_title(steering),
                    metric_type="spearman-within-prompt",
                    metric_name=f"{name}: rank correlation of asked and measured within a prompt",
                    metric_value=round(row["within_prompt"]["value"], 4),
                )
            )
    for name, row in ((attributes or {}).get("attributes") or {}).items():
        figure = row["overall"]["model"]["pearson"]["value"]
        if figure is not None:
            found.append(
                EvalResult(
                    task_type="text-classification",
                    dataset_type="human-ratings",
                    dataset_name="human ratings",
                    metric_type="pearsonr",
                    metric_name=f"{name}: correlation with human ratings",
                    metric_value=round(figure, 4),
                )
            )
    return found


def _categories(mt_bench: Mapping[str, Any] | None) -> list[str]:
    """Those that some model has a score in, in their order."""
    scores = mt_bench["scores"] if mt_bench else ()
    figures = (item for score in scores for item in score["categories"].items())
    return list(dict.fromkeys(name for name, figure in figures if is_number(figure["value"])))


def _license(name: str | None) -> tuple[str | None, str | None]:
    """The hub's `license` and `license_name`: of a licence that it does not know, `other` and the name as an id."""
    if name is None:
        return None, None
    short = "-".join(re.findall(r"[\w.+]+", name.lower()))
    return (short, None) if short in _HUB_LICENSES else ("other", short or None)


def _plain(metrics: Mapping[str, Any]) -> dict[str, float]:
    return {name: value for name, value in metrics.items() if isinstance(value, int | float)}


# Settings that a reader asks for; places of files on some machine are not among them.
_SHOWN = (
    *(
        "labels",
        "match_spread",
        "rank_attributes",
        "context",
        "batch_tokens",
        "batch_conversations",
        "epochs",
        "max_steps",
    ),
    *("learning_rate", "contrast", "label_dropout", "lora_rank", "precision", "seed"),
)


def _shown_settings(info: ModelInfo) -> dict[str, Any]:
    settings = info.provenance.get("settings")
    known = settings if isinstance(settings, dict) else {}
    return {name: known[name] for name in _SHOWN if known.get(name) is not None}
