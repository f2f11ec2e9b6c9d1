"""Every form of tree attention gives the losses, gradients and scores of flattened threads through plain attention."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoModelForSequenceClassification, PreTrainedModel

from references import path_tokens, thread_nll
from steerlm.attention import Form, TreeLayout, use_plain_attention, use_tree_attention
from steerlm.attributes import STEERLM
from steerlm.conversation import Conversation
from steerlm.losses import token_nll
from steerlm.models.load import SteerModel, new_model
from steerlm.packing import Pack, fit, lay_out, pack
from steerlm.sources import import_conversations
from steerlm.tokens import TokenTree
from steerlm.training.attribute_model import predict
from steerlm.training.policy import likelihoods, response_nll
from steerlm.training.task import Batch
from strategies import examples, token_trees, within
from tiny import NETWORKS, TOKENIZERS, renderer, save_base, spread

VOCABULARY = 97
FORMS: tuple[Form, ...] = ("dense", "segments", "flex")
# Flex says that it is slow uncompiled; here it is a check of the mathematics.
pytestmark = pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile:UserWarning")


@cache
def network(name: str) -> PreTrainedModel:
    return spread(NETWORKS[name](VOCABULARY))


def inputs(made: Pack) -> dict[str, Any]:
    return {
        "input_ids": torch.as_tensor(made.ids_T)[None],
        "position_ids": torch.as_tensor(made.positions_T)[None],
        "tree": TreeLayout(made),
        "use_cache": False,
    }


def packed_nll(model: PreTrainedModel, made: Pack) -> dict[int, torch.Tensor]:
    """-log p of the trained tokens of each response of a pack."""
    logits = model(**inputs(made)).logits[0, torch.as_tensor(made.rows_N)]
    nll_N = token_nll(logits, torch.as_tensor(made.targets_N))
    owner_N = torch.as_tensor(made.owner_N)
    return {number: nll_N[owner_N == number] for number in range(len(made.responses))}


def responses(trees: list[TokenTree], made: Pack) -> list[tuple[TokenTree, int]]:
    """The tree and segment of each response of `lay_out(trees)`, found by where their leaf ends."""
    found = []
    offset = 0
    for tree in trees:
        for segment in depth_first(tree):
            offset += len(tree.segments[segment].ids)
            if tree.segments[segment].is_response and tree.segments[segment].weight > 0:
                assert made.responses[len(found)].score_at == offset - 1
                found.append((tree, segment))
    return found


def depth_first(tree: TokenTree, parent: int = -1) -> list[int]:
    return [
        index
        for child, segment in enumerate(tree.segments)
        if segment.parent == parent
        for index in (child, *depth_first(tree, child))
    ]


FORESTS = st.lists(token_trees(most=6).map(lambda tree: within(tree, VOCABULARY)), min_size=1, max_size=2)


@pytest.mark.parametrize("name", list(NETWORKS))
@examples(15)
@given(trees=FORESTS)
def test_losses(name: str, trees: list[TokenTree]) -> None:
    model = network(name)
    made = lay_out(trees)
    use_plain_attention(model)
    with torch.no_grad():
        expected = [thread_nll(model, tree, segment) for tree, segment in responses(trees, made)]
        for form in FORMS:
            use_tree_attention(model, form)
            found = packed_nll(model, made)
            for number, values in enumerate(expected):
                torch.testing.assert_close(found[number], values, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", list(NETWORKS))
@examples(15)
@given(trees=FORESTS)
def test_gradients(name: str, trees: list[TokenTree]) -> None:
    """Of the weighted sum over all trained tokens, for every parameter."""
    model = network(name)
    made = lay_out(trees)
    found = responses(trees, made)
    if not found:
        return
    gradients = {}
    for form in ("threads", "dense", "segments"):
        model.zero_grad()
        if form == "threads":
            use_plain_attention(model)
            terms = [tree.segments[segment].weight * thread_nll(model, tree, segment).sum() for tree, segment in found]
        else:
            use_tree_attention(model, form)  # type: ignore[arg-type]
            sums = packed_nll(model, made)
            terms = [tree.segments[s].weight * sums[number].sum() for number, (tree, s) in enumerate(found)]
        torch.stack(terms).sum().backward()
        gradients[form] = {
            key: weight.grad.clone() for key, weight in model.named_parameters() if weight.grad is not None
        }
    scale = max(gradient.abs().max().item() for gradient in gradients["threads"].values())
    for form in ("dense", "segments"):
        assert gradients[form].keys() == gradients["threads"].keys()
        for key, gradient in gradients["threads"].items():
            torch.testing.assert_close(gradients[form][key], gradient, rtol=1e-3, atol=1e-5 * scale)


def test_a_token_that_is_wrongly_seen_would_be_noticed() -> None:
    """The tolerance above means something: one more visible token changes losses by far more than it allows."""
    model = network("llama")
    use_plain_attention(model)
    ids = torch.randint(0, VOCABULARY, (1, 12), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        whole = model(ids, position_ids=torch.arange(12)[None]).logits[0, -1].log_softmax(-1)
        less = model(ids[:, 1:], position_ids=torch.arange(1, 12)[None]).logits[0, -1].log_softmax(-1)
    assert (whole - less).abs().max() > 0.05


@pytest.fixture(scope="module", params=list(NETWORKS))
def scorer(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> SteerModel:
    base = save_base(tmp_path_factory.mktemp("base"), TOKENIZERS["chatml"](), request.param)
    model = new_model("attribute-model", base, STEERLM)
    model.network.eval()
    spread(model.network)
    return model


@examples(15)
@given(data=st.data())
def test_scores(scorer: SteerModel, data: st.DataObject) -> None:
    trees = data.draw(st.lists(token_trees(most=6, foils=False), min_size=1, max_size=2))
    trees = [within(tree, 400) for tree in trees]
    compare_scores(scorer, trees, FORMS)


def compare_scores(scorer: SteerModel, trees: list[TokenTree], forms: tuple[Form, ...]) -> None:
    """Each response's with those of its thread alone."""
    made = lay_out(trees)
    use_plain_attention(scorer.network)
    body, head = scorer.network.base_model, scorer.network.score
    with torch.no_grad():
        expected = [
            head(body(input_ids=torch.tensor([path_tokens(tree, segment)])).last_hidden_state[0, -1])
            for tree, segment in responses(trees, made)
        ]
        for form in forms if expected else ():
            use_tree_attention(scorer.network, form)
            found = predict(scorer, Batch.of(made, torch.device("cpu")))
            torch.testing.assert_close(found, torch.stack(expected), rtol=1e-4, atol=1e-4)


def real_trees(real_data: Path, source: str) -> list[Conversation]:
    """Some that are short enough to be quick: prompts with four responses each, or dialogues of many branches."""
    file = {"helpsteer": "helpsteer/train.jsonl", "oasst": "oasst1/messages.jsonl"}[source]
    conversations = import_conversations(source, real_data / file).conversations
    least = {"helpsteer": 2, "oasst": 4}[source]
    depths = [max(len(c.path(index)) for index in c.responses) for c in conversations]
    sizes = [sum(len(message.text) for message in c.messages) for c in conversations]
    fitting = [c for c, depth, size in zip(conversations, depths, sizes, strict=True) if depth >= least and size < 1800]
    assert len(fitting) >= 3
    return fitting[:3]


@pytest.mark.parametrize("name", ["llama", "qwen2"])
@pytest.mark.parametrize("source", ["helpsteer", "oasst"])
def test_real_trees(real_data: Path, source: str, name: str) -> None:
    """Likelihoods and gradients, fitted and packed, against one forward pass of plain attention a response."""
    made = renderer("chatml", "chatml", "levels")
    trees = [
        made.tree(c, "policy", {k: c.messages[k].ratings for k in c.responses}) for c in real_trees(real_data, source)
    ]
    fitted, report = fit(trees, 1200, 1800)
    assert report.responses == sum(len(tree.active) for tree in trees) > 10
    model = spread(NETWORKS[name](len(made.tokenizer)))
    steerable = SteerModel(None, made, model)  # type: ignore[arg-type]
    use_plain_attention(model)
    expected = {}
    for tree in fitted:
        for index in tree.active:
            nll = thread_nll(model, tree, index).sum()
            (tree.segments[index].weight * nll).backward()
            expected[tree.conversation, tree.segments[index].message] = -nll.item()
    gradients = {key: weight.grad.clone() for key, weight in model.named_parameters() if weight.grad is not None}
    scale = max(gradient.abs().max().item() for gradient in gradients.values())
    for form in ("dense", "segments"):
        use_tree_attention(model, form)  # type: ignore[arg-type]
        model.zero_grad()
        found: dict[tuple[str, int], float] = {}
        for item in pack(fitted, 1800):
            batch = Batch.of(item, torch.device("cpu"))
            nll_N = response_nll(steerable, batch, 512)
            (torch.as_tensor(item.weights_N) * nll_N).sum().backward()
            keys = [(response.conversation, response.message) for response in item.responses]
            found.update(zip(keys, likelihoods(nll_N, batch).tolist(), strict=True))
        assert found == pytest.approx(expected, rel=1e-4)
        for key, gradient in gradients.items():
            torch.testing.assert_close(model.get_parameter(key).grad, gradient, rtol=1e-3, atol=1e-5 * scale)


@pytest.mark.parametrize("scorer", ["llama", "qwen2"], indirect=True)
@pytest.mark.parametrize("source", ["helpsteer", "oasst"])
def test_scores_of_real_trees(scorer: SteerModel, real_data: Path, source: str) -> None:
    trees = [scorer.renderer.tree(conversation, "score") for conversation in real_trees(real_data, source)]
    fitted, report = fit(trees, 1200, 1800)
    assert report.responses == sum(len(tree.active) for tree in trees) > 10
    compare_scores(scorer, fitted, ("dense", "segments"))


def test_attribute_models_of_other_shapes_load_in_bare_transformers(tmp_path: Path) -> None:
    """One saved directory for each architecture; `test_sequence_classification` compares the scores."""
    for name in NETWORKS:
        base = save_base(tmp_path / name, TOKENIZERS["gpt2"](), name)
        new_model("attribute-model", base, STEERLM).save(tmp_path / f"{name}-model")
        bare = AutoModelForSequenceClassification.from_pretrained(tmp_path / f"{name}-model")
        assert bare.config.num_labels == len(STEERLM)
