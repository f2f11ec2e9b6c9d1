"""What each of several processes does in the tests of sharding, and the same in one process, in the plainest way."""

from __future__ import annotations

import random
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, Shard, distribute_tensor
from transformers import (
    Olmo2Config,
    Olmo2ForCausalLM,
    Phi3Config,
    Phi3ForCausalLM,
    PreTrainedModel,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from steerlm.attention import TreeLayout, use_tree_attention
from steerlm.attributes import STEERLM
from steerlm.errors import DataError, TrainingError
from steerlm.losses import LossSum, token_nll, weighted_nll
from steerlm.models.adapters import Lora
from steerlm.models.directory import Kind
from steerlm.models.load import SteerModel, head_of, hidden_states, new_model
from steerlm.packing import Pack, fit, lay_out
from steerlm.parallel.balance import is_blank, share_packs
from steerlm.parallel.export import save_sharded
from steerlm.parallel.load import blank_model
from steerlm.parallel.local import local_part, read_rows, write_rows, write_whole
from steerlm.parallel.ranks import Ranks
from steerlm.parallel.shard import Root, clip_grad_norm, shard
from steerlm.tokens import TokenTree
from steerlm.training.checkpoint import Checkpoints, Progress
from steerlm.training.new_tokens import NewTokens
from strategies import random_conversation
from tiny import PLAIN, SHAPE, spread
from tiny_lora import with_lora

SEED = 5
BUDGET = 128


@dataclass(frozen=True)
class Case:
    """A model and how it is sharded."""

    base: Path
    kind: Kind = "policy"
    dtype: torch.dtype = torch.float32
    checkpointing: bool = False
    lora: Lora | None = None

    def make(self) -> SteerModel:
        """The model as one process makes it."""
        return self.adapted(new_model(self.kind, self.base, STEERLM))

    def adapted(self, model: SteerModel) -> SteerModel:
        return with_lora(model, self.base, self.lora) if self.lora else model


def make_trees(model: SteerModel, count: int = 9) -> list[TokenTree]:
    generator = random.Random(1)
    conversations = [random_conversation(generator, f"tree-{k}", generator.randint(2, 6)) for k in range(count)]
    task = "policy" if model.info.kind == "policy" else "score"
    trees = []
    for conversation in conversations:
        weights = {index: 1.0 + index % 2 for index in conversation.responses}
        labels = {index: conversation.messages[index].ratings for index in conversation.responses}
        trees.append(model.renderer.tree(conversation, task, labels, weights))
    return fit(trees, BUDGET, BUDGET)[0]


def pack_loss(network: PreTrainedModel, pack: Pack) -> dict[str, LossSum]:
    """The weighted likelihood of a policy, or a squared error of an attribute model's scores."""
    inputs = {
        "input_ids": torch.as_tensor(pack.ids_T)[None],
        "position_ids": torch.as_tensor(pack.positions_T)[None],
        "tree": TreeLayout(pack),
    }
    weights_N = torch.as_tensor(pack.weights_N)
    if hasattr(network, "score"):
        states_1TD = hidden_states(network, **inputs)
        places = [response.score_at for response in pack.responses]
        scores_RA = head_of(network)(states_1TD[0, places].float())
        weights_R = torch.zeros(len(places)).index_put((torch.as_tensor(pack.owner_N),), weights_N)
        return {"loss": LossSum(((scores_RA - 1).square() * weights_R[:, None]).sum(), weights_R.sum())}
    rows_N = torch.as_tensor(pack.rows_N)
    logits_1NV = network(**inputs, logits_to_keep=rows_N, use_cache=False).logits
    return {"loss": weighted_nll(token_nll(logits_1NV[0], torch.as_tensor(pack.targets_N)), weights_N)}


def whole(tensor: Tensor) -> Tensor:
    return (tensor.full_tensor() if isinstance(tensor, DTensor) else tensor).detach().clone()


def weights_of(network: nn.Module) -> dict[str, Tensor]:
    return {name: whole(tensor) for name, tensor in network.state_dict().items()}


def learning(network: nn.Module) -> dict[str, nn.Parameter]:
    """What of a network is trained."""
    return {name: parameter for name, parameter in network.named_parameters() if parameter.requires_grad}


def gradients_of(network: nn.Module) -> dict[str, Tensor]:
    """Of all that is trained and of nothing else."""
    assert all(parameter.grad is None for parameter in network.parameters() if not parameter.requires_grad)
    return {name: whole(parameter.grad) for name, parameter in learning(network).items()}


def move_adapter(network: nn.Module) -> None:
    """Let the adapter add something: as it starts, B is zero, and so are the gradients of A."""
    for name, parameter in learning(network).items():
        if "lora_B" in name:
            generator = torch.Generator().manual_seed(zlib.crc32(name.encode()))
            write_whole(parameter, torch.randn(parameter.shape, generator=generator) * 0.2)


def give_gradients(network: nn.Module, step: int) -> None:
    """The same gradient for each weight however it is sharded."""
    for name, parameter in learning(network).items():
        generator = torch.Generator().manual_seed(zlib.crc32(name.encode()) + step)
        gradient = torch.randn(parameter.shape, generator=generator)
        if isinstance(parameter, DTensor):
            local, where = local_part(parameter)
            parameter.grad = DTensor.from_local(
                gradient[where].contiguous().view(local.shape),
                parameter.device_mesh,
                parameter.placements,
                shape=parameter.shape,
                stride=parameter.stride(),
            )
        else:
            parameter.grad = gradient


def make_optimizer(network: nn.Module) -> torch.optim.AdamW:
    matrices = [parameter for parameter in learning(network).values() if parameter.ndim >= 2]
    others = [parameter for parameter in learning(network).values() if parameter.ndim < 2]
    groups = [{"params": matrices, "weight_decay": 0.1}, {"params": others, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=1e-2, fused=True)


def spread_out(case: Case, ranks: Ranks) -> tuple[SteerModel, Root]:
    torch.manual_seed(SEED)
    blank = blank_model(case.kind, case.base, STEERLM)
    model = case.adapted(blank.model)
    network = model.network
    use_tree_attention(network, "segments")
    root = Root(network)
    shard(network, root, ranks, case.dtype, case.checkpointing)
    blank.fill(root, ranks.device)
    network.train()
    return model, root


def train_in_process(cases: dict[str, Case], tensor_parallel: int) -> dict[str, dict[str, Any]]:
    """Of each case the weights as loaded, a step's loss and gradients, and what optimiser and new tokens do."""
    ranks = Ranks.start("cpu", tensor_parallel)
    found = {name: _train(case, ranks) for name, case in cases.items()}
    ranks.close()
    return found


def _train(case: Case, ranks: Ranks) -> dict[str, Any]:
    model, root = spread_out(case, ranks)
    network = model.network
    found: dict[str, Any] = {"loaded": weights_of(network), "new_tokens": model.new_tokens}
    move_adapter(network)
    found["held"] = sum(local_part(parameter)[0].numel() for parameter in network.parameters())
    packs = share_packs(make_trees(model), BUDGET, ranks)
    found["packs"] = [0 if is_blank(pack) else pack.size for pack in packs]
    # A validation in between must leave sharded weights behind.
    with torch.no_grad():
        before = [root(pack_loss, network, pack)["loss"].total for pack in packs]
    types = {}
    network.base_model.layers[0].mlp.up_proj.register_forward_pre_hook(
        lambda module, _: types.update(block=module.weight.dtype)
    )
    if case.kind == "attribute-model":
        head_of(network).register_forward_pre_hook(lambda module, _: types.update(head=module.weight.dtype))
    total = count = 0.0
    for pack in packs:
        loss = root(pack_loss, network, pack)["loss"]
        loss.total.backward()
        total, count = total + loss.total.item(), count + loss.count.item()
    sums = ranks.sum(torch.tensor([total, count, sum(before).item()], dtype=torch.float64)).tolist()
    found.update(zip(("loss", "count", "loss_before"), sums, strict=True), types=types)
    found["gradients"] = gradients_of(network)
    found["gradient_types"] = {parameter.grad.dtype for parameter in learning(network).values()}
    found["norm"] = clip_grad_norm(network.parameters(), 0.5, ranks)
    found["clipped"] = gradients_of(network)
    new_tokens = NewTokens(model, 10.0)
    new_tokens.straighten()
    optimizer = make_optimizer(network)
    for step in range(2):
        give_gradients(network, step)
        with new_tokens.step():
            optimizer.step()
    found["stepped"] = weights_of(network)
    return found


def train_plainly(case: Case, model: SteerModel) -> dict[str, Any]:
    """What `train_in_process` finds, of an ordinary model in this process with a pack for each tree."""
    network = model.network.train()
    use_tree_attention(network, "dense")
    found: dict[str, Any] = {"loaded": weights_of(network), "new_tokens": model.new_tokens}
    move_adapter(network)
    losses = [pack_loss(network, lay_out([tree]))["loss"] for tree in make_trees(model)]
    total = torch.stack([loss.total for loss in losses]).sum()
    total.backward()
    found.update(loss=total.item(), count=sum(loss.count.item() for loss in losses))
    found["gradients"] = gradients_of(network)
    found["norm"] = nn.utils.clip_grad_norm_(network.parameters(), 0.5).item()
    found["clipped"] = gradients_of(network)
    new_tokens = NewTokens(model, 10.0)
    new_tokens.straighten()
    optimizer = make_optimizer(network)
    for step in range(2):
        give_gradients(network, step)
        with new_tokens.step():
            optimizer.step()
    found["stepped"] = weights_of(network)
    return found


def other_networks() -> dict[str, PreTrainedModel]:
    """Decoders whose plans for tensor parallelism have other styles: norms of heads, fused matrices."""
    shape = {"vocab_size": 64, **SHAPE, **PLAIN, "num_key_value_heads": 2, "pad_token_id": 0}
    made = {
        "qwen3": Qwen3ForCausalLM(Qwen3Config(**shape, head_dim=8)),
        "olmo2": Olmo2ForCausalLM(Olmo2Config(**shape)),
        "phi3": Phi3ForCausalLM(Phi3Config(**shape)),
    }
    return {name: spread(network).train() for name, network in made.items()}


def other_loss(network: PreTrainedModel, ids_1T: Tensor) -> Tensor:
    logits_1TV = network(input_ids=ids_1T, use_cache=False).logits
    return token_nll(logits_1TV[0, :-1], ids_1T[0, 1:]).sum()


def other_ids() -> Tensor:
    return torch.randint(1, 64, (1, 20), generator=torch.Generator().manual_seed(0))


def other_gradients_in_process() -> dict[str, dict[str, Tensor]]:
    """Gradients of decoders that were made in full before they were sharded; both data ranks see the same tokens."""
    ranks = Ranks.start("cpu", 2)
    found = {}
    for name, network in other_networks().items():
        root = Root(network)
        shard(network, root, ranks)
        root(other_loss, network, other_ids()).backward()
        found[name] = {name: whole(parameter.grad) for name, parameter in network.named_parameters()}
        found[name]["norm"] = torch.tensor(clip_grad_norm(network.parameters(), 1e9, ranks))
    ranks.close()
    return found


def save_in_process(cases: dict[str, Case], tensor_parallel: int, folder: Path) -> dict[str, dict[str, Tensor]]:
    """Two optimiser steps, then a checkpoint and a model directory of each case. Returns what was saved."""
    ranks = Ranks.start("cpu", tensor_parallel)
    found = {}
    for name, case in cases.items():
        model, root = spread_out(case, ranks)
        optimizer = make_optimizer(root)
        for step in range(2):
            give_gradients(model.network, step)
            optimizer.step()
        found[name] = _trained(root, optimizer)
        Checkpoints(folder / f"{name}-checkpoint", "a run", 1, ranks).save(root.network, optimizer, Progress(step=1))
        found[name]["fingerprint"] = save_sharded(model, folder / name, ranks, file_bytes=40_000).info.fingerprint
    ranks.close()
    return found


def save_apart_in_process(case: Case, folder: Path) -> str:
    """Each process has a disk of its own; returns what it says on saving a checkpoint."""
    ranks = Ranks.start("cpu")
    _, root = spread_out(case, ranks)
    own = Checkpoints(folder / str(ranks.rank), "a run", 1, ranks)
    with pytest.raises(TrainingError) as caught:
        own.save(root.network, make_optimizer(root), Progress(step=1))
    ranks.any(False)  # so that none leaves while another one still listens
    ranks.close()
    return str(caught.value)


def resume_in_process(cases: dict[str, Case], tensor_parallel: int, folder: Path) -> dict[str, dict[str, Any]]:
    """What stands in the checkpoints that `save_in_process` left, as other processes read it; then a third step."""
    ranks = Ranks.start("cpu", tensor_parallel)
    found = {}
    for name, case in cases.items():
        model, root = spread_out(case, ranks)
        optimizer = make_optimizer(root)
        checkpoints = Checkpoints(folder / f"{name}-checkpoint", "a run", 1, ranks)
        assert checkpoints.resume(root.network, optimizer) == Progress(step=1)
        found[name] = _trained(root, optimizer)
        found[name]["rates"] = [group["lr"] for group in optimizer.param_groups]
        give_gradients(model.network, 2)
        optimizer.step()
        found[name]["third"] = weights_of(model.network)
    ranks.close()
    return found


def _trained(root: Root, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """Weights and moments by the names of the weights."""
    moments = {
        f"{name} {key}": whole(value)
        for name, parameter in learning(root).items()
        for key, value in optimizer.state[parameter].items()
    }
    return {"weights": weights_of(root.network), "moments": moments}


def talk_in_process() -> dict[str, Any]:
    """Every way in which processes exchange something, on a 2 x 2 mesh."""
    ranks = Ranks.start("cpu", 2)

    def fail(error: Exception) -> None:
        raise error

    def told_of(error: Exception) -> str:
        try:
            ranks.on_main(lambda: fail(error))
        except Exception as caught:
            return f"{type(caught).__name__}: {caught}"
        return "nothing"

    own = torch.tensor([float(ranks.rank), 10.0])
    found = {
        "place": (ranks.data_rank, ranks.tensor_rank),
        "main": ranks.is_main,
        "sum": ranks.sum(own).tolist(),
        "own": own.tolist(),
        "gathered": ranks.gather(str(ranks.rank)),
        "everywhere": ranks.gather_from_all(str(ranks.rank)),
        "any": [ranks.any(ranks.rank == 3), ranks.any(False)],
        "told": ranks.on_main(lambda: f"by rank {ranks.rank}"),
        "failure": told_of(OSError("no room")),
        "refusal": told_of(DataError("bad data")),
    }
    ranks.any(False)  # so that none leaves while another one still asks
    ranks.close()
    return found


def move_rows_in_process() -> list[Tensor]:
    """Rows of a matrix of 5 rows over 4 processes (the last of which holds none), read, written and read whole."""
    ranks = Ranks.start("cpu")
    assert ranks.mesh is not None
    matrix = distribute_tensor(torch.arange(10.0).view(5, 2), ranks.mesh["data"], [Shard(0)])
    rows = torch.tensor([4, 0, 3])
    read = read_rows(matrix, rows)
    write_rows(matrix, rows, read + 100)
    columns = distribute_tensor(torch.arange(8.0).view(2, 4), ranks.mesh["data"], [Shard(1)])
    with pytest.raises(ValueError, match="not whole on any process"):
        read_rows(columns, torch.tensor([0]))
    found = [read, whole(matrix)]
    ranks.close()
    return found
