"""How well the attribute model's ridge head judges responses that it has not seen, on real data.

    python benchmarks/attribute_model.py --data OASST.jsonl --data HELPSTEER.jsonl [--out DIR]

Without data it reads `oasst1/messages.jsonl` and `helpsteer/train.jsonl` under `$STEERLM_SHARED_DATA`. Ten-fold
cross-validation over conversations: each is judged by a head fitted, penalties and all, to the other nine tenths of
them. The backbone is the same in all folds, so that its states are computed once and kept in DIR/states.npz.
Writes benchmarks/results/attribute_model.json: per attribute the errors beside those of the training mean, and the
correlations, each with a 95% interval from drawing whole conversations.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import os
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table
from torch import nn

from steerlm.attention import default_form, use_tree_attention
from steerlm.attributes import STEERLM
from steerlm.conversation import Conversation
from steerlm.evaluation.bootstrap import Estimate, cluster_bootstrap
from steerlm.files import sha256, write_json
from steerlm.models.load import new_model
from steerlm.provenance import environment
from steerlm.sources import import_conversations
from steerlm.sources.detect import detect_kind
from steerlm.training.attribute_model import rating_table, score_states
from steerlm.training.loop import pick_device, pick_precision
from steerlm.training.metrics import agreement
from steerlm.training.ridge import start_ridge
from steerlm.training.task import Batch, make_packs

Floats = NDArray[np.float64]
RESULT = Path(__file__).parent / "results" / "attribute_model.json"
SHARED = ("oasst1/messages.jsonl", "helpsteer/train.jsonl")
FOLDS = 10


@dataclass(frozen=True)
class Judged:
    """All rated responses. Shapes: R responses, D hidden, A attributes.

    states_RD        the backbone's states at their score positions
    rated_RA         human ratings, NaN where there is none
    conversation_R   number of the conversation that each belongs to
    names            ids of those conversations
    """

    states_RD: NDArray[np.float32]
    rated_RA: Floats
    conversation_R: NDArray[np.int64]
    names: tuple[str, ...]
    seconds: float
    tokens: int


def read(paths: Sequence[Path]) -> list[Conversation]:
    """The rated conversations of files in any format that `steerlm data import` reads."""
    found = [c for path in paths for c in import_conversations(detect_kind(path), path).conversations]
    return [c for c in found if any(message.ratings for message in c.messages)]


def extract(conversations: Sequence[Conversation], base: str, context: int, precision: torch.dtype) -> Judged:
    """Run the untrained backbone over all rated responses."""
    model = new_model("attribute-model", base, STEERLM)
    model.network.to(pick_device("auto"))  # type: ignore[arg-type]
    model.network.eval()
    use_tree_attention(model.network, default_form(model.device))
    number = {c.id: index for index, c in enumerate(conversations)}
    trees = [
        model.renderer.tree(c, "score", weights={i: float(bool(c.messages[i].ratings)) for i in c.responses})
        for c in conversations
    ]
    packs = make_packs(trees, context, context)
    states, ratings, owners = [], [], []
    began = time.perf_counter()
    for index, pack in enumerate(packs):
        with torch.no_grad(), torch.autocast(model.device.type, precision, enabled=precision != torch.float32):
            states.append(score_states(model, Batch.of(pack, model.device)).float().cpu().numpy())
        owners += [number[response.conversation] for response in pack.responses]
        ratings += [conversations[number[r.conversation]].messages[r.message].ratings for r in pack.responses]
        if index % 10 == 0:
            print(f"{index + 1} of {len(packs)} packs, {time.perf_counter() - began:.0f} s", flush=True)
    return Judged(
        np.concatenate(states),
        rating_table(STEERLM, ratings),
        np.array(owners),
        tuple(number),
        time.perf_counter() - began,
        sum(pack.size for pack in packs),
    )


def cached(file: Path, key: str, conversations: Sequence[Conversation], **how: Any) -> Judged:
    """What `extract` yields, from `file` where that holds it for the same `key`."""
    if file.is_file():
        with np.load(file) as kept:
            if str(kept["key"]) == key:
                fields = {name: kept[name] for name in ("states_RD", "rated_RA", "conversation_R")}
                return Judged(
                    **fields, names=tuple(kept["names"]), seconds=float(kept["seconds"]), tokens=int(kept["tokens"])
                )
    judged = extract(conversations, **how)
    file.parent.mkdir(parents=True, exist_ok=True)
    np.savez(file, key=key, **{**asdict(judged), "names": np.array(judged.names)})
    return judged


def folds(names: Sequence[str]) -> NDArray[np.int64]:
    """The fold of each conversation: by the digest of its id, ten of equal size."""
    ranks = np.argsort(np.argsort([hashlib.sha256(name.encode()).hexdigest() for name in names]))
    return ranks % FOLDS


def cross_validate(judged: Judged) -> tuple[Floats, Floats]:
    """For every response the scores of the head that was fitted without its conversation, and the training means."""
    fold_R = folds(judged.names)[judged.conversation_R]
    states_RD, rated_RA = torch.from_numpy(judged.states_RD).double(), torch.from_numpy(judged.rated_RA)
    predicted_RA, mean_RA = np.full((2, *judged.rated_RA.shape), np.nan)
    for fold in range(FOLDS):
        kept_R, out_R = fold_R != fold, fold_R == fold
        head = nn.Linear(states_RD.shape[1], rated_RA.shape[1], bias=False).double()
        groups = [judged.names[number] for number in judged.conversation_R[kept_R]]
        start_ridge(head, states_RD[kept_R], rated_RA[kept_R], groups)
        predicted_RA[out_R] = head(states_RD[out_R]).detach().numpy()
        mean_RA[out_R] = np.nanmean(judged.rated_RA[kept_R], axis=0)
        print(f"fold {fold + 1} of {FOLDS}", flush=True)
    return predicted_RA, mean_RA


def figures(judged: Judged, predicted_RA: Floats, mean_RA: Floats) -> dict[str, Any]:
    """Per attribute: errors, those of the mean, their difference and the correlations, with intervals."""
    found = {}
    for column, attribute in enumerate(STEERLM):
        present_R = ~np.isnan(judged.rated_RA[:, column])
        if not present_R.any():
            continue
        samples = [table[present_R, column] for table in (predicted_RA, judged.rated_RA, mean_RA)]
        clusters = judged.conversation_R[present_R]

        def estimate(name: str, clusters: Any = clusters, samples: Any = samples) -> Estimate:
            return cluster_bootstrap(lambda p, r, m: agreement(p, r, m)[name], clusters, *samples)

        found[attribute.name] = {
            "n": int(present_R.sum()),
            "conversations": len(set(clusters)),
            **{name: estimate(name)._asdict() for name in ("mae", "baseline_mae", "rmse", "pearson", "spearman")},
            "mae_minus_baseline": cluster_bootstrap(
                lambda p, r, m: float((np.abs(p - r) - np.abs(m - r)).mean()), clusters, *samples
            )._asdict(),
        }
    return found


def show(found: dict[str, Any]) -> None:
    """The figures as a table."""
    table = Table(box=None)
    for name in ("attribute", "n", "MAE", "of the mean", "difference", "Pearson", "Spearman"):
        table.add_column(name)
    for name, row in found.items():
        shown = [Estimate(**row[key]) for key in ("mae", "baseline_mae", "mae_minus_baseline", "pearson", "spearman")]
        table.add_row(name, str(row["n"]), *(str(item) if math.isfinite(item.value) else "-" for item in shown))
    Console(width=160).print(table)


def main() -> None:
    """Measure, show, and write the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", action="append", type=Path, help="rated data; may be repeated")
    parser.add_argument("--base", default="smollm2", help="base model: a Hugging Face id, a path, or smollm2")
    parser.add_argument("--context", type=int, default=2048, help="longest path in tokens")
    parser.add_argument("--precision", default="auto", choices=["auto", "fp32", "bf16"])
    parser.add_argument(
        "--out", type=Path, default=Path("runs/attribute-model-benchmark"), help="where states are kept"
    )
    parser.add_argument("--result", type=Path, default=RESULT, help="JSON file to write")
    arguments = parser.parse_args()
    paths = arguments.data
    if not paths:
        if "STEERLM_SHARED_DATA" not in os.environ:
            parser.error("name the data with --data, or set STEERLM_SHARED_DATA")
        paths = [Path(os.environ["STEERLM_SHARED_DATA"]) / name for name in SHARED]
    conversations = read(paths)
    precision = pick_precision(arguments.precision, pick_device("auto"))
    how = {"base": arguments.base, "context": arguments.context, "precision": str(precision).removeprefix("torch.")}
    data = {path.name: sha256(path) for path in paths}
    key = json.dumps([how, data, environment()["libraries"]])
    judged = cached(
        arguments.out / "states.npz",
        key,
        conversations,
        base=arguments.base,
        context=arguments.context,
        precision=precision,
    )
    began = time.perf_counter()
    found = figures(judged, *cross_validate(judged))
    show(found)
    write_json(
        arguments.result,
        {
            "attributes": found,
            "responses": len(judged.states_RD),
            "conversations": len(judged.names),
            "folds": FOLDS,
            "intervals": "95%, bootstrap over conversations",
            **how,
            "data": data,
            "tokens": judged.tokens,
            "seconds": {"states": judged.seconds, "folds and intervals": time.perf_counter() - began},
            **environment(),
        },
    )
    print(f"written to {arguments.result}")


if __name__ == "__main__":
    main()
