"""The proof that all contenders do the same work: their summed losses before any update."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from benchmarks.training import peers
from benchmarks.training.options import Contender, Options, Prepared
from benchmarks.training.ours import make_task
from steerlm.attention import default_form, use_tree_attention
from steerlm.devices import pick_device
from steerlm.files import load_conversations
from steerlm.models.directory import ModelInfo
from steerlm.models.load import new_model
from steerlm.packing import fit, pack
from steerlm.training.survey import Survey
from steerlm.training.task import Batch


def summed_losses(options: Options, prepared: Prepared, folder: Path) -> dict[str, Any]:
    """Negative log-likelihood (or squared error) summed over all that is trained of a few conversations, as every
    contender computes it, and the largest relative difference from ours on trees.
    """
    names = [c.id for c in load_conversations(prepared.trees)[: options.check_conversations]]
    contenders = options.contenders_of(prepared.kind)
    sums = {"steerlm": _ours(options, prepared, "steerlm", names)}
    for contender in contenders:
        if contender == "steerlm-threads":
            sums[contender] = _ours(options, prepared, contender, names)
        elif contender != "steerlm":
            sums[contender] = peers.summed_loss(peers.make_trainer(options, prepared, contender, folder, names))
    reference = sums["steerlm"]
    difference = max(abs(total / reference - 1) for total in sums.values())
    return {"conversations": len(names), "summed_loss": sums, "largest_relative_difference": difference}


def _ours(options: Options, prepared: Prepared, contender: Contender, names: list[str]) -> float:
    schema = ModelInfo.load(prepared.start).schema
    model = new_model(prepared.kind, prepared.start, schema, None, options.level_tokens)
    device = pick_device("auto")
    model.network.to(device)  # type: ignore[arg-type]
    use_tree_attention(model.network, default_form(device), options.context)
    task = make_task(model, options, contender)
    if contender == "steerlm":
        conversations = [c for c in load_conversations(prepared.trees) if c.id in names]
    else:
        conversations = [c for c in load_conversations(prepared.threads) if c.id.rpartition("/")[0] in names]
    task.remember(Survey.of(conversations))
    fitted, _ = fit([task.tree(c, 0) for c in conversations], options.context, options.pack_tokens)
    total = 0.0
    with torch.no_grad():
        for item in pack(fitted, options.pack_tokens):
            total += sum(loss.total.item() for loss in task.losses(Batch.of(item, model.device)).values())
    return total
