"""Tree layouts, the models that tree attention refuses, and its undoing."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn.attention.flex_attention import BlockMask, create_block_mask, flex_attention
from transformers import (
    BloomConfig,
    BloomForCausalLM,
    GptOssConfig,
    GptOssForCausalLM,
    GraniteMoeHybridConfig,
    GraniteMoeHybridForCausalLM,
    Lfm2Config,
    Lfm2ForCausalLM,
    Llama4ForCausalLM,
    Llama4TextConfig,
    NemotronConfig,
    NemotronForCausalLM,
    Phi3Config,
    Phi3ForCausalLM,
    PreTrainedModel,
)

from references import dense_layout
from steerlm.attention import (
    TreeLayout,
    _capped,
    _written_out,
    compiled_flex_attention,
    default_form,
    use_plain_attention,
    use_tree_attention,
)
from steerlm.block_masks import BLOCK
from steerlm.errors import ModelError
from steerlm.packing import lay_out
from steerlm.tokens import Segment, Span, TokenTree
from strategies import examples, token_trees
from tiny import SHAPE, gemma2, llama, spread

TREE = TokenTree(
    "t",
    (
        Segment((1, 2, 3), (Span("user", 3),), -1, 0, 3),
        Segment((4, 5, 6), (Span("marker", 1), Span("response", 1), Span("end", 1)), 0, 1, 2, weight=1.0),
        Segment((4, 7, 6), (Span("marker", 1), Span("response", 1), Span("end", 1)), 0, 2, 2, weight=1.0),
    ),
)
PACK = lay_out([TREE])


def test_the_mask_of_two_branches() -> None:
    expected = [
        [1, 0, 0, 0, 0, 0, 0, 0, 0],
        [1, 1, 0, 0, 0, 0, 0, 0, 0],
        [1, 1, 1, 0, 0, 0, 0, 0, 0],
        [1, 1, 1, 1, 0, 0, 0, 0, 0],
        [1, 1, 1, 1, 1, 0, 0, 0, 0],
        [1, 1, 1, 1, 1, 1, 0, 0, 0],
        [1, 1, 1, 0, 0, 0, 1, 0, 0],
        [1, 1, 1, 0, 0, 0, 1, 1, 0],
        [1, 1, 1, 0, 0, 0, 1, 1, 1],
    ]
    assert TreeLayout(PACK).dense_mask().int().tolist() == expected


def test_a_window_is_counted_along_the_path() -> None:
    """The first token of the second branch stands at position 3, three places after the first token of the prompt."""
    mask = TreeLayout(PACK).dense_mask(window=3)
    assert mask[6].int().tolist() == [0, 1, 1, 0, 0, 0, 1, 0, 0]


@examples(60)
@given(st.lists(token_trees(most=7), min_size=1, max_size=3), st.none() | st.integers(1, 12))
def test_every_mask_is_the_dense_reference(trees: list[TokenTree], window: int | None) -> None:
    pack = lay_out(trees)
    layout = TreeLayout(pack)
    expected = torch.tensor(dense_layout(trees, window).visible)
    assert torch.equal(layout.dense_mask(window), expected)
    assert sum(layout.pieces) == pack.size
    borders = torch.tensor([0, *layout.pieces]).cumsum(0).tolist()
    for number, run in enumerate(pack.runs):
        # What `segments` computes for a run: its pieces as keys, its mask over them, or plain causal attention.
        seen = [key for piece in layout.run_pieces[number] for key in range(borders[piece], borders[piece + 1])]
        length, reach = run.stop - run.start, len(seen)
        mask = layout.run_mask(number, window)
        if mask is None:
            assert reach == length
            mask = torch.ones(length, length).tril().bool()
        full = torch.zeros(length, pack.size, dtype=torch.bool)
        full[:, seen] = mask
        assert torch.equal(full, expected[run.start : run.stop])
    index = torch.arange(pack.size)
    for whole in (layout, layout.in_blocks):
        pairs = whole.block_mask(window).mask_mod(None, None, index[:, None], index[None, :])
        assert torch.equal(pairs, expected)


@pytest.mark.parametrize("window", [None, 2])
def test_the_block_mask_is_the_same_relation(window: int | None) -> None:
    mask_mod = TreeLayout(PACK).block_mask(window).mask_mod
    zero = torch.tensor(0)
    relation = [[bool(mask_mod(zero, zero, torch.tensor(q), torch.tensor(k))) for k in range(9)] for q in range(9)]
    assert relation == dense_layout([TREE], window).visible


@examples(60)
@given(st.lists(token_trees(most=9), min_size=1, max_size=4), st.none() | st.integers(1, 20))
def test_blocks_are_those_of_the_dense_mask(trees: list[TokenTree], window: int | None) -> None:
    """With a window a block may be called a part that is whole or empty; never the other way round."""
    layout = TreeLayout(lay_out(trees))
    size = 4
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("steerlm.block_masks.BLOCK", size)
        mask = layout.block_mask(window)
    missing = -layout.size % size
    dense = torch.nn.functional.pad(layout.dense_mask(window), (0, missing, 0, missing))
    blocks = dense.unflatten(1, (-1, size)).unflatten(0, (-1, size)).transpose(1, 2).flatten(2)
    some, whole = blocks.any(2), blocks.all(2)
    part = BlockMask.from_kv_blocks(mask.kv_num_blocks, mask.kv_indices).to_dense()[0, 0].bool()
    full = BlockMask.from_kv_blocks(mask.full_kv_num_blocks, mask.full_kv_indices).to_dense()[0, 0].bool()
    assert not (part & full).any()
    assert not (some & ~(part | full)).any()
    assert not (full & ~whole).any()
    if window is None:
        assert torch.equal(full, whole)
        assert torch.equal(part, some & ~whole)


def inputs(tree: TreeLayout | None = None) -> dict[str, object]:
    return {
        "input_ids": torch.tensor(PACK.ids_T)[None],
        "position_ids": torch.tensor(PACK.positions_T)[None],
        **({"tree": tree} if tree else {}),
    }


@pytest.mark.parametrize("form", ["dense", "segments", "flex"])
def test_a_layout_is_needed(form: str) -> None:
    network = llama(16)
    use_tree_attention(network, form)  # type: ignore[arg-type]
    with pytest.raises(ModelError, match="without tree=TreeLayout"):
        network(**inputs())


@pytest.mark.parametrize("form", ["dense", "segments"])
def test_a_layout_must_be_that_of_the_pack(form: str) -> None:
    network = llama(16)
    use_tree_attention(network, form)  # type: ignore[arg-type]
    with pytest.raises(ModelError, match=r"expected one pack of 18 tokens, got queries of shape \(1, 4, 9, 8\)"):
        network(**inputs(TreeLayout(lay_out([TREE, TREE]))))
    twice = {name: torch.cat([value, value]) for name, value in inputs().items()}  # type: ignore[list-item]
    with pytest.raises(ModelError, match="expected one pack of 9 tokens"):
        network(**twice, tree=TreeLayout(PACK))


SMALL = {"vocab_size": 16, **SHAPE, "num_key_value_heads": 2, "bos_token_id": None, "eos_token_id": None}


@pytest.mark.parametrize("form", ["dense", "segments", "flex"])
@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile:UserWarning")
def test_a_soft_cap_is_computed(form: str) -> None:
    """The parity tests take all of a capped model; this one sees to it that its cap is felt."""
    network = spread(gemma2(16))
    use_tree_attention(network, form)  # type: ignore[arg-type]
    with torch.no_grad():
        capped = network(**inputs(TreeLayout(PACK))).logits
        for layer in network.model.layers:
            layer.self_attn.attn_logit_softcapping = None
        assert not torch.allclose(network(**inputs(TreeLayout(PACK))).logits, capped, atol=1e-3)


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile:UserWarning")
def test_flex_computes_in_the_type_of_autocast(monkeypatch: pytest.MonkeyPatch) -> None:
    """Compiled, FlexAttention takes what it is given, and rotation makes queries and keys float32."""
    given_types = []

    def watched(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, **options: object) -> torch.Tensor:
        given_types.append((query.dtype, key.dtype, value.dtype))
        return flex_attention(query, key, value, **options)  # type: ignore[arg-type, return-value]

    monkeypatch.setattr("steerlm.attention._flex_attention", lambda device: watched)
    network = spread(llama(16))
    use_tree_attention(network, "flex")
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        network(**inputs(TreeLayout(PACK)))
    assert set(given_types) == {(torch.bfloat16,) * 3}


@pytest.mark.filterwarnings("ignore:.torch.jit.script_method. is deprecated")  # within PyTorch's compiler
def test_a_soft_cap_can_be_compiled() -> None:
    """As on GPUs; here for the CPU, whose compiler takes no layouts of trees: with a plain causal mask."""
    generator = torch.Generator().manual_seed(0)
    for size in (2 * BLOCK, 3 * BLOCK):
        query, key, value = (torch.randn(1, heads, size, 16, generator=generator) * 3 for heads in (4, 2, 2))
        mask = create_block_mask(lambda b, h, q, k: k <= q, None, None, size, size, device="cpu")
        with torch.no_grad():
            found = compiled_flex_attention()(
                query, key, value, score_mod=_capped(2.0, query.device), block_mask=mask, enable_gqa=True
            )
        expected = _written_out(query, key, value, torch.ones(size, size).tril().bool(), None, 2.0, 0.0)
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("form", ["dense", "segments", "flex"])
@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile:UserWarning")
@pytest.mark.filterwarnings("ignore:.torch.jit.script_method. is deprecated")  # within PyTorch's compiler
def test_compiled_blocks_are_not_compiled_anew_for_other_trees(form: str) -> None:
    network = llama(16)
    use_tree_attention(network, form)  # type: ignore[arg-type]
    compiled: list[torch.fx.GraphModule] = []

    def interpret(graph: torch.fx.GraphModule, example: object) -> object:
        compiled.append(graph)
        return graph.forward

    torch._dynamo.reset()
    for layer in network.model.layers:
        layer.compile(dynamic=True, backend=interpret)
    counts = []
    for trees in range(1, 6):
        made = lay_out([TREE] * trees)
        with torch.no_grad():
            network(
                input_ids=torch.tensor(made.ids_T)[None],
                position_ids=torch.tensor(made.positions_T)[None],
                tree=TreeLayout(made),
            )
        counts.append(len(compiled))
    torch._dynamo.reset()
    assert counts[0] > 0
    assert counts == counts[:1] * 5


def test_attention_sinks_are_refused() -> None:
    config = GptOssConfig(**SMALL, head_dim=8, num_local_experts=2, num_experts_per_tok=1, pad_token_id=0)
    network = GptOssForCausalLM(config).eval()
    use_tree_attention(network, "segments")
    with pytest.raises(ModelError, match="uses s_aux, which tree attention does not compute"):
        network(**inputs(TreeLayout(PACK)))


def test_attention_that_cannot_be_replaced_is_refused() -> None:
    network = BloomForCausalLM(BloomConfig(vocab_size=16, hidden_size=32, n_layer=1, n_head=2))
    with pytest.raises(ModelError, match="BloomForCausalLM computes its attention itself"):
        use_tree_attention(network, "dense")


def test_layers_that_mix_tokens_by_other_means_are_refused() -> None:
    """A convolution or a recurrence runs over the pack as if it were one text; chunks are no windows of a path."""
    convolution = Lfm2ForCausalLM(Lfm2Config(**SMALL, layer_types=["conv", "full_attention"]))
    with pytest.raises(ModelError, match="Lfm2ForCausalLM has conv layers"):
        use_tree_attention(convolution, "dense")
    chunks = Llama4TextConfig(**SMALL, head_dim=8, num_local_experts=2, intermediate_size_mlp=32, pad_token_id=0)
    with pytest.raises(ModelError, match="Llama4ForCausalLM has chunked_attention layers"):
        use_tree_attention(Llama4ForCausalLM(chunks), "dense")
    recurrence = GraniteMoeHybridConfig(
        **SMALL, layer_types=["mamba", "attention"], mamba_n_heads=4, mamba_d_state=8, num_local_experts=0
    )
    with pytest.raises(ModelError, match="would mix the branches"):
        use_tree_attention(GraniteMoeHybridForCausalLM(recurrence), "dense")


def test_layers_that_keep_the_layout_from_their_attention_are_refused() -> None:
    network = NemotronForCausalLM(NemotronConfig(**SMALL, head_dim=8))
    with pytest.raises(ModelError, match="NemotronForCausalLM hands no layout on to its attention"):
        use_tree_attention(network, "segments")


ORIGINAL = "original_max_position_embeddings"
DYNAMIC = {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 4.0}
LONG = {"rope_type": "longrope", "rope_theta": 1e4, "short_factor": [1.0] * 4, "long_factor": [4.0] * 4}


def rotating(kind: str) -> PreTrainedModel:
    """Frequencies that change beyond 32 positions."""
    if kind == "dynamic":
        return spread(llama(16, max_position_embeddings=32, rope_parameters=DYNAMIC))
    made = {"original_max_position_embeddings": 32, "max_position_embeddings": 128, "pad_token_id": 0}
    return spread(Phi3ForCausalLM(Phi3Config(**SMALL, **made, rope_parameters=LONG | {ORIGINAL: 32})).eval())


def path_of(length: int) -> TokenTree:
    return TokenTree(
        f"{length}", (Segment(tuple(k % 16 for k in range(length)), (Span("user", length),), -1, 0, length),)
    )


@pytest.mark.parametrize("kind", ["dynamic", "longrope"])
def test_frequencies_that_change_with_the_longest_text_bound_the_context(kind: str) -> None:
    network = rotating(kind)
    for longest in (None, 33):
        with pytest.raises(ModelError, match=f"of type {kind}: .*make the context at most 32"):
            use_tree_attention(network, "segments", longest)
    use_tree_attention(network, "segments", 32)

    def computed(*lengths: int) -> torch.Tensor:
        pack = lay_out([path_of(length) for length in lengths])
        ids, positions = torch.tensor(pack.ids_T)[None], torch.tensor(pack.positions_T)[None]
        with torch.no_grad():
            logits: torch.Tensor = network(input_ids=ids, position_ids=positions, tree=TreeLayout(pack)).logits
        return logits[0, : lengths[0]]

    alone = computed(9)
    torch.testing.assert_close(computed(9, 32), alone)
    assert not torch.allclose(computed(9, 40), alone, atol=1e-3)


def test_frequencies_that_stay_allow_any_context() -> None:
    yarn = {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0, ORIGINAL: 32}
    use_tree_attention(llama(16, max_position_embeddings=128, rope_parameters=yarn), "segments")


def test_plain_attention_comes_back() -> None:
    network = llama(16)
    ids = torch.tensor([[1, 2, 3, 4]])
    before = network(ids).logits
    use_tree_attention(network, "segments")
    use_plain_attention(network)
    assert torch.equal(network(ids).logits, before)


def test_flex_has_no_dropout() -> None:
    network = llama(16, attention_dropout=0.5).train()
    use_tree_attention(network, "flex")
    with pytest.raises(ModelError, match="FlexAttention has no dropout"):
        network(**inputs(TreeLayout(PACK)))


@pytest.mark.parametrize("form", ["dense", "segments"])
def test_dropout_is_for_training_only(form: str) -> None:
    network = llama(16, attention_dropout=0.5)
    use_tree_attention(network, form)  # type: ignore[arg-type]
    still = [network(**inputs(TreeLayout(PACK))).logits for _ in range(2)]
    assert torch.equal(*still)
    network.train()
    torch.manual_seed(0)
    moving = [network(**inputs(TreeLayout(PACK))).logits for _ in range(2)]
    assert not torch.equal(*moving)


def test_the_form_of_a_device() -> None:
    assert default_form("cpu") == "segments"
    assert default_form(torch.device("cuda", 1)) == "flex"
