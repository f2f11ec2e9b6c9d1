"""How well the attribute model's ridge head judges responses that it has not seen, on real data.

    python -m benchmarks.attribute_model [--data FILE --data FILE] [--keep FOLDER]

Ten-fold cross-validation over conversations: each is judged by a head fitted, penalties and all, to nine tenths of the
others. The untrained backbone is the same in all folds, so that its states are computed once and kept in a file.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
from cyclopts import Parameter
from numpy.typing import NDArray
from pydantic import Field
from rich.console import Console
from rich.table import Table
from scipy import stats
from torch import nn

from benchmarks.command import run_benchmark
from benchmarks.measure import set_threads, surroundings
from steerlm.attention import default_form, use_tree_attention
from steerlm.attributes import STEERLM
from steerlm.conversation import Conversation
from steerlm.devices import pick_device, pick_precision
from steerlm.errors import ConfigError
from steerlm.evaluation.bootstrap import Estimate, cluster_bootstrap
from steerlm.files import replacing, sha256, write_json
from steerlm.models.load import new_model
from steerlm.packing import fit, pack
from steerlm.settings import Settings
from steerlm.sources import import_conversations
from steerlm.sources.detect import detect_kind
from steerlm.training.attribute_model import rating_table, score_states
from steerlm.training.config import Precision
from steerlm.training.ridge import start_ridge
from steerlm.training.task import Batch

Floats = NDArray[np.float64]
_SHARED = ("oasst1/messages.jsonl", "helpsteer/train.jsonl")
_FOLDS = 10


class JudgeSettings(Settings):
    """Settings of the benchmark."""

    data: tuple[Path, ...] = ()
    """Rated data in any format that `steerlm data import` reads; without any, those in `$STEERLM_SHARED_DATA`."""
    base: str = "smollm2"
    """Base model: a Hugging Face id, a path, or smollm2."""
    context: Annotated[int, Field(ge=16)] = 2048
    """Longest path in tokens."""
    precision: Precision = "auto"
    """What the backbone computes in."""
    threads: Annotated[int, Field(ge=1)] = os.cpu_count() or 1
    """Cores to compute on."""
    keep: Path = Path("runs/bench/attribute-model")
    """Folder that keeps the backbone's states, for the next run on the same data."""
    out: Path = Path(__file__).parent / "results" / "attribute_model.json"
    """File of the results."""


@dataclass(frozen=True)
class Judged:
    """All rated responses. Shapes: R responses, C conversations, D hidden, A attributes.

    states_RD        the untrained backbone's states at their score positions
    rated_RA         human ratings, NaN where there is none
    conversation_R   index into `names_C` of each
    names_C          ids of the conversations
    tokens, seconds  what computing the states took, in processor time
    """

    states_RD: NDArray[np.float32]
    rated_RA: Floats
    conversation_R: NDArray[np.int64]
    names_C: NDArray[np.str_]
    tokens: int
    seconds: float


def read(paths: Sequence[Path]) -> list[Conversation]:
    """The rated conversations of the files."""
    found = [c for path in paths for c in import_conversations(detect_kind(path), path).conversations]
    return [c for c in found if any(message.ratings for message in c.messages)]


def compute_states(conversations: Sequence[Conversation], base: str, context: int, dtype: torch.dtype) -> Judged:
    """Run the backbone over all rated responses."""
    model = new_model("attribute-model", base, STEERLM)
    model.network.to(pick_device("auto"))  # type: ignore[arg-type]
    model.network.eval()
    use_tree_attention(model.network, default_form(model.device), context)
    number = {c.id: index for index, c in enumerate(conversations)}
    trees = (
        model.renderer.tree(c, "score", weights={i: float(bool(c.messages[i].ratings)) for i in c.responses})
        for c in conversations
    )
    packs = pack(fit(trees, context)[0], context)
    states, ratings, owners = [], [], []
    began = time.process_time()
    for index, item in enumerate(packs):
        with torch.no_grad(), torch.autocast(model.device.type, dtype, enabled=dtype != torch.float32):
            states.append(score_states(model, Batch.of(item, model.device)).float().cpu().numpy())
        for response in item.responses:
            owners.append(number[response.conversation])
            ratings.append(conversations[owners[-1]].messages[response.message].ratings)
        if index % 10 == 0:
            print(f"pack {index + 1} of {len(packs)}", file=sys.stderr, flush=True)
    return Judged(
        np.concatenate(states),
        rating_table(STEERLM, ratings),
        np.array(owners),
        np.array(list(number)),
        sum(item.size for item in packs),
        time.process_time() - began,
    )


def kept_states(file: Path, key: str, compute: Callable[[], Judged]) -> Judged:
    """What `compute` gives, from `file` where that holds it for the same `key`."""
    if file.is_file():
        with np.load(file) as kept:
            if str(kept["key"]) == key:
                return Judged(**{field.name: kept[field.name][()] for field in fields(Judged)})
    judged = compute()
    with replacing(file) as temporary, temporary.open("wb") as stream:
        np.savez(stream, key=key, **asdict(judged))
    return judged


def folds(names: Sequence[str]) -> NDArray[np.int64]:
    """The fold of each conversation, ten of equal size in the order of the digests of ids."""
    digests = [hashlib.sha256(str(name).encode()).hexdigest() for name in names]
    return np.argsort(np.argsort(digests)) % _FOLDS


def cross_validate(judged: Judged) -> tuple[Floats, Floats]:
    """For every response the scores of the head that was fitted without its conversation, and the training means."""
    fold_R = folds(judged.names_C)[judged.conversation_R]
    states_RD, rated_RA = torch.from_numpy(judged.states_RD).double(), torch.from_numpy(judged.rated_RA)
    groups = judged.names_C[judged.conversation_R]
    predicted_RA, mean_RA = np.full((2, *judged.rated_RA.shape), np.nan)
    for fold in range(_FOLDS):
        kept_R, out_R = fold_R != fold, fold_R == fold
        head = nn.Linear(states_RD.shape[1], rated_RA.shape[1], bias=False).double()
        start_ridge(head, states_RD[kept_R], rated_RA[kept_R], groups[kept_R].tolist())
        predicted_RA[out_R] = head(states_RD[out_R]).detach().numpy()
        known_A = ~np.isnan(judged.rated_RA[kept_R]).all(axis=0)
        mean_RA[np.ix_(out_R, known_A)] = np.nanmean(judged.rated_RA[kept_R][:, known_A], axis=0)
    return predicted_RA, mean_RA


# Of predictions p, human ratings r and training means m.
FIGURES: dict[str, Callable[[Floats, Floats, Floats], float]] = {
    "mae": lambda p, r, m: float(np.abs(p - r).mean()),
    "baseline_mae": lambda p, r, m: float(np.abs(m - r).mean()),
    "mae_minus_baseline": lambda p, r, m: float((np.abs(p - r) - np.abs(m - r)).mean()),
    "rmse": lambda p, r, m: float(np.sqrt(np.square(p - r).mean())),
    "baseline_rmse": lambda p, r, m: float(np.sqrt(np.square(m - r).mean())),
    "pearson": lambda p, r, m: float(stats.pearsonr(p, r).statistic) if np.ptp(p) > 0 < np.ptp(r) else np.nan,
    "spearman": lambda p, r, m: float(stats.spearmanr(p, r).statistic) if np.ptp(p) > 0 < np.ptp(r) else np.nan,
}


def agreement(judged: Judged, predicted_RA: Floats, mean_RA: Floats, resamples: int = 2000) -> dict[str, Any]:
    """Per attribute all figures, each with its interval from drawing whole conversations."""
    found = {}
    for column, attribute in enumerate(STEERLM):
        present_R = ~np.isnan(judged.rated_RA[:, column])
        if not present_R.any():
            continue
        samples = [table[present_R, column] for table in (predicted_RA, judged.rated_RA, mean_RA)]
        clusters = judged.conversation_R[present_R]
        estimates = {
            name: cluster_bootstrap(figure, clusters, *samples, resamples=resamples)._asdict()
            for name, figure in FIGURES.items()
        }
        found[attribute.name] = {"n": int(present_R.sum()), "conversations": len(set(clusters)), **estimates}
    return found


def main(*, settings: Annotated[JudgeSettings | None, Parameter(name="*")] = None) -> None:
    """Judge held-out responses in ten folds; print a table, write the result."""
    settings = settings or JudgeSettings()
    set_threads(settings.threads)
    paths = settings.data or [Path(os.environ.get("STEERLM_SHARED_DATA", "")) / name for name in _SHARED]
    if not settings.data and "STEERLM_SHARED_DATA" not in os.environ:
        raise ConfigError("no data; name files with --data, or the folder of real data in STEERLM_SHARED_DATA")
    dtype = pick_precision(settings.precision, pick_device("auto"))
    data = {path.name: sha256(path) for path in paths}
    how = {"base": settings.base, "context": settings.context, "precision": str(dtype).removeprefix("torch.")}
    judged = kept_states(
        settings.keep / "states.npz",
        json.dumps([how, data]),
        lambda: compute_states(read(paths), settings.base, settings.context, dtype),
    )
    began = time.process_time()
    found = agreement(judged, *cross_validate(judged))
    record = {
        "attributes": found,
        "responses": len(judged.states_RD),
        "conversations": len(judged.names_C),
        "folds": _FOLDS,
        "intervals": "95%, percentiles of 2000 draws of whole conversations",
        **how,
        "data": data,
        "tokens": int(judged.tokens),
        "processor_seconds": {"states": float(judged.seconds), "folds and intervals": time.process_time() - began},
        **surroundings(),
    }
    write_json(settings.out, record)
    _table(found)


def _table(found: dict[str, Any]) -> None:
    lines = Table("attribute", "n", title="Held-out responses, against people's ratings", title_justify="left")
    shown = ("mae", "baseline_mae", "mae_minus_baseline", "rmse", "pearson", "spearman")
    for name in shown:
        lines.add_column(name.replace("_", " "), justify="right")
    for name, row in found.items():
        lines.add_row(name, str(row["n"]), *(str(Estimate(**row[key])) for key in shown))
    Console(width=170).print(lines)


if __name__ == "__main__":
    run_benchmark("attribute_model", main)
