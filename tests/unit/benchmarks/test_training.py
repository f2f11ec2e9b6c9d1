"""The benchmark of training: are both sides given the same work, and are its operations counted rightly?"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModelForCausalLM, PreTrainedModel

from benchmarks.training import check, data, flops, ours, peers, profiling
from benchmarks.training.options import Options, Prepared, Work
from benchmarks.training.results import Run, compared
from steerlm.attention import TreeLayout, use_tree_attention
from steerlm.conversation import Conversation, Message
from steerlm.errors import DataError
from steerlm.files import load_conversations
from steerlm.models.load import SteerModel
from steerlm.packing import Pack, lay_out
from steerlm.training.task import Batch

TREE = Conversation(
    "c",
    (
        Message("user", "Why?"),
        Message("assistant", "Because.", 0, {"quality": 4.0}),
        Message("assistant", "Who knows?", 0, {"quality": 1.0}),
        Message("user", "And then?", 1),
        Message("assistant", "Nothing.", 3, {"humor": 0.0}),
        Message("assistant", "Then it rains.", 3),
        Message("user", "So?", 2),
        Message("user", "Why do you ask?", 1),
    ),
    system="Be kind.",
)


def options(base: Path, **changes: object) -> Options:
    return Options.model_validate({"base": str(base), "context": 512, "pack_tokens": 512, **changes})


@pytest.fixture
def prepared(chatml_base: Path, tmp_path: Path) -> Prepared:
    return data.prepare(options(chatml_base, conversations=6), "policy-sample", tmp_path)


@pytest.mark.parametrize(
    ("kind", "paths"),
    [
        ("policy", [(0, 1, 3, 4), (0, 1, 3, 5), (0, 2, 6), (0, 1, 7)]),
        ("attribute-model", [(0, 1), (0, 2), (0, 1, 3, 4)]),
    ],
)
def test_flattening(kind: str, paths: list[tuple[int, ...]]) -> None:
    threads = list(data.flattened(TREE, kind))  # type: ignore[arg-type]
    texts = [tuple(message.text for message in thread.messages) for thread in threads]
    assert sorted(texts) == sorted(tuple(TREE.messages[index].text for index in path) for path in paths)
    rated = sum(bool(message.ratings) for thread in threads for message in thread.messages)
    assert rated == (5 if kind == "policy" else 3)


def test_sequences_train_what_transformers_trains(policy: SteerModel) -> None:
    """The loss of transformers' own model on the labels is that of the trees, with plain causal attention."""
    packs = [lay_out([policy.renderer.tree(TREE, "policy", weights={1: 3.0, 2: 1.0, 4: 1.0, 5: 0.0})])]
    use_tree_attention(policy.network, "dense")
    ours = sum(_nll(policy, pack) for pack in packs)
    plain = AutoModelForCausalLM.from_pretrained(policy.network.config._name_or_path, dtype=torch.float32)
    theirs = 0.0
    for thread in data.flattened(TREE, "policy"):
        weights = {index: float(bool(message.ratings)) for index, message in enumerate(thread.messages)}
        row = data.sequence(policy.renderer.tree(thread, "policy", weights=weights), thread, "policy", policy.schema)
        labels = torch.tensor([row["labels"]])
        trained = (labels != data.IGNORED).sum()
        theirs += plain(torch.tensor([row["input_ids"]]), labels=labels).loss.item() * trained.item()
    assert ours == pytest.approx(theirs, rel=1e-5)


def _nll(model: SteerModel, pack: Pack) -> float:
    batch = Batch.of(pack, model.device)
    with torch.no_grad():
        logits_TV = model.network(**batch.inputs()).logits[0]
    nll_N = torch.nn.functional.cross_entropy(logits_TV[pack.rows_N], batch.tensor(pack.targets_N), reduction="none")
    return float((nll_N * batch.tensor(pack.weights_N)).sum())


@pytest.mark.parametrize("work", ["policy-sample", "attributes-sample"])
@pytest.mark.parametrize("flatten", ["root-to-leaf", "trained"])
def test_all_forms_have_the_same_loss(work: Work, flatten: str, chatml_base: Path, tmp_path: Path) -> None:
    asked = options(
        chatml_base, conversations=6, flatten=flatten, contenders=["steerlm", "steerlm-threads", "transformers"]
    )
    prepared = data.prepare(asked, work, tmp_path)
    record = check.summed_losses(asked, prepared, tmp_path)
    assert len(record["summed_loss"]) == (2 if work == "policy-sample" else 3)
    assert record["largest_relative_difference"] < 1e-5


def test_prepared_data(prepared: Prepared) -> None:
    trees, threads = load_conversations(prepared.trees), load_conversations(prepared.threads)
    assert prepared.figures["sample"]["ids"] == [tree.id for tree in trees]
    assert len(trees) == 6
    assert len(threads) == prepared.figures["threads"]["sequences"] == len(data.read_sequences(prepared.rows))
    assert prepared.figures["threads"]["tokens"] > prepared.figures["trees"]["tokens"]


def test_a_sample_is_drawn_by_its_seed(chatml_base: Path, tmp_path: Path) -> None:
    asked = [options(chatml_base, conversations=3, seed=seed) for seed in (0, 0, 1)]
    samples = [data.prepare(each, "policy-sample", tmp_path).figures["sample"]["ids"] for each in asked]
    assert samples[0] == samples[1] != samples[2]


def test_what_is_beyond_the_context_is_left_out_for_all(chatml_base: Path, tmp_path: Path) -> None:
    figures = data.prepare(options(chatml_base, context=130, pack_tokens=130), "policy-sample", tmp_path).figures
    assert figures["threads"]["longest"] <= 130
    assert figures["left_out"]["messages"]["beyond 130 tokens"] > 0


def test_nothing_fits(chatml_base: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="raise it"):
        data.prepare(options(chatml_base, context=16, pack_tokens=16), "policy-sample", tmp_path)


def test_every_contender_trains_all_tokens(chatml_base: Path, tmp_path: Path) -> None:
    asked = options(chatml_base, conversations=4, batch=2, accumulation=2)
    prepared = data.prepare(asked, "attributes-sample", tmp_path)
    figures = prepared.figures
    trees = ours.train(asked, prepared, "steerlm", tmp_path)
    threads = ours.train(asked, prepared, "steerlm-threads", tmp_path)
    others = peers.train(asked, prepared, "transformers", tmp_path)
    assert trees.tokens == figures["trees"]["tokens"]
    assert threads.tokens == others.tokens == figures["threads"]["tokens"]
    assert others.computed_tokens >= others.tokens
    assert trees.computed_tokens == trees.tokens
    assert others.passes == -(-figures["threads"]["sequences"] // 2)
    assert others.steps == -(-others.passes // 2)
    assert all(run.loss > 0 and run.peak_mb > 0 for run in (trees, threads, others))


def test_the_profile_finds_every_part(chatml_base: Path, tmp_path: Path) -> None:
    asked = options(chatml_base, conversations=6, profile_steps=1, batch_tokens=600)
    prepared = data.prepare(asked, "policy-sample", tmp_path)
    record = profiling.profile_steps(asked, prepared, tmp_path)
    assert all(record["seconds"][part] > 0 for part in profiling.PARTS)
    assert sum(record["shares"].values()) == pytest.approx(1)
    assert sum(record["seconds"].values()) >= record["elapsed"]


def test_an_epoch_too_short_to_profile(chatml_base: Path, tmp_path: Path) -> None:
    asked = options(chatml_base, conversations=2, profile_steps=9)
    prepared = data.prepare(asked, "policy-sample", tmp_path)
    assert profiling.profile_steps(asked, prepared, tmp_path) == {}


@pytest.fixture
def pack(policy: SteerModel) -> Pack:
    return lay_out([policy.renderer.tree(TREE, "policy")])


def test_visible_pairs(pack: Pack) -> None:
    assert flops.visible_pairs(pack) == int(TreeLayout(pack).dense_mask().sum())


def _counted(network: PreTrainedModel, pack: Pack) -> dict[str, int]:
    """Operations that PyTorch counts in a forward and a backward pass with dense attention."""
    use_tree_attention(network, "dense")
    inputs = Batch.of(pack, torch.device("cpu"))
    with FlopCounterMode(display=False) as counter:
        logits = network(**inputs.inputs(), logits_to_keep=inputs.tensor(pack.rows_N), use_cache=False).logits
        logits.sum().backward()
    return {str(operation): count for operation, count in counter.get_flop_counts()["Global"].items()}


def test_operations_are_those_that_pytorch_counts(policy: SteerModel, pack: Pack) -> None:
    formula = flops.model_flops(policy.network, [policy.renderer.tree(TREE, "policy")])
    counted = _counted(policy.network, pack)
    assert formula["linear"] + formula["head"] == counted["aten.mm"]
    # Dense attention computes all pairs, the hidden ones too.
    assert formula["attention"] / flops.visible_pairs(pack) == counted["aten.bmm"] / pack.size**2
    assert formula["total"] == formula["linear"] + formula["head"] + formula["attention"]


def test_product_rate(policy: SteerModel) -> None:
    record = flops.product_rate(policy.network, 8, "fp32", square=64)
    assert record["best"] == max(record["products"].values()) > 0
    assert "8 x 32 x 48" in record["products"]


def test_comparison() -> None:
    """Ours took the median of 2, 4 and 9 seconds for 80 operations on a machine of 40 a second; TRL took 12 s."""
    ours = [Run(seconds + 1, seconds, 1.0, 3, 3, 100, 100, 1.0, 50, 10) for seconds in (9.0, 2.0, 4.0)]
    trl = [Run(13.0, 12.0, 1.0, 3, 3, 150, 200, 1.0, 200, 10)]
    figures = {"threads": {"tokens": 150}, "flops": {"total": 80}}
    record = compared({"steerlm": ours, "trl": trl}, figures, [{"best": 40.0}, {"best": 30.0}])
    assert record["trl"]["times_our_seconds"] == 3.0
    assert record["trl"]["our_share_of_its_memory"] == 0.25
    assert record["steerlm"]["share_of_product_rate"] == 0.5
    assert (record["steerlm"]["fill"], record["trl"]["fill"]) == (1.0, 0.75)
