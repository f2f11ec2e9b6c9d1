"""Tree attention for decoders that use transformers' attention interface.

A `TreeLayout` says which tokens of a pack see which; it travels to the attention layers as the keyword `tree`:

    use_tree_attention(model, "segments")
    model(input_ids=ids_1T, position_ids=positions_1T, tree=TreeLayout(pack))

Three forms of the same function: `dense` builds the whole mask and is the reference; `segments` runs one
attention per run over just the tokens that it sees, for CPUs; `flex` hands FlexAttention a block mask, for GPUs.

Shapes: T tokens, H heads, K key-value heads, D head size, L tokens of a run, P tokens before it.
"""

from __future__ import annotations

from functools import cache, cached_property
from itertools import pairwise
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import AttentionInterface, PretrainedConfig, PreTrainedModel
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from steerlm.block_masks import BLOCK, block_mask
from steerlm.cpu_attention import attend, is_for_float32_gradients
from steerlm.errors import ModelError
from steerlm.packing import Pack, padded

Form = Literal["dense", "segments", "flex"]
_NAMES: dict[Form, str] = {form: f"steerlm_tree_{form}" for form in ("dense", "segments", "flex")}
# Models whose layers keep from their attention whatever further arguments the model is called with.
_KEEP_LAYOUTS_BACK = ("nemotron",)


class TreeLayout:
    """Who sees whom in one pack. Masks are made on first use and shared by all layers."""

    def __init__(self, pack: Pack, device: torch.device | str = "cpu") -> None:
        self.runs = pack.runs
        self.size = pack.size
        self.device = torch.device(device)
        self._run_masks: dict[tuple[int, int | None], Tensor | None] = {}
        self._dense_masks: dict[int | None, Tensor] = {}
        self._block_masks: dict[int | None, Any] = {}
        self._pack = pack

    @cached_property
    def positions_T(self) -> Tensor:
        return torch.as_tensor(self._pack.positions_T, device=self.device)

    @cached_property
    def until_T(self) -> Tensor:
        """The position before which each token is visible: packs are laid out depth first, so that all that stands
        between it and there descends from it.
        """
        until_T = np.empty(self.size, dtype=np.int32)
        for run in self.runs:
            for start, stop in (*run.prefix, (run.start, run.stop)):
                until_T[start:stop] = run.stop
        return torch.as_tensor(until_T, device=self.device)

    @cached_property
    def run_lengths(self) -> list[int]:
        return [run.stop - run.start for run in self.runs]

    @cached_property
    def _borders(self) -> list[int]:
        ends = {border for run in self.runs for pair in ((run.start, run.stop), *run.prefix) for border in pair}
        return sorted(ends)

    @cached_property
    def pieces(self) -> list[int]:
        """Lengths of consecutive pieces of the pack, cut wherever some run's view begins or ends."""
        return [stop - start for start, stop in pairwise(self._borders)]

    @cached_property
    def run_pieces(self) -> list[list[int]]:
        """For each run the pieces that it sees, in order: its path, then itself."""
        number = {start: index for index, start in enumerate(self._borders)}
        return [
            [
                piece
                for start, stop in (*run.prefix, (run.start, run.stop))
                for piece in range(number[start], number[stop])
            ]
            for run in self.runs
        ]

    @cached_property
    def in_blocks(self) -> TreeLayout:
        """The same, with a last run of padding to whole blocks.

        FlexAttention's kernels are compiled once for any number of blocks and of runs, but for one of either they are
        compiled anew, and those for less than a block of queries are of another kind, which fails for trees.
        """
        size = max(2, self.size // BLOCK + 1) * BLOCK
        return TreeLayout(padded(self._pack, size), self.device)

    def dense_mask(self, window: int | None = None) -> Tensor:
        """[T, T], true where the row's token sees the column's; `window` as in sliding-window attention."""
        if window not in self._dense_masks:
            index = torch.arange(self.size, device=self.device)
            visible = (index[None, :] <= index[:, None]) & (index[:, None] < self.until_T[None, :])
            if window is not None:
                visible &= self.positions_T[:, None] - self.positions_T[None, :] < window
            self._dense_masks[window] = visible
        return self._dense_masks[window]

    def run_mask(self, number: int, window: int | None = None) -> Tensor | None:
        """[L, P + L] for run `number`, or None where plain causal attention is enough."""
        key = (number, window)
        if key not in self._run_masks:
            run = self.runs[number]
            length, before = run.stop - run.start, sum(stop - start for start, stop in run.prefix)
            reach = before + length
            if before == 0 and (window is None or reach <= window):
                self._run_masks[key] = None
            else:
                row = torch.arange(before, reach, device=self.device)[:, None]
                column = torch.arange(reach, device=self.device)[None, :]
                visible = column <= row
                if window is not None:
                    visible &= row - column < window
                self._run_masks[key] = visible
        return self._run_masks[key]

    def block_mask(self, window: int | None = None) -> Any:
        """The FlexAttention block mask of the same relation."""
        if window not in self._block_masks:
            until_T, positions_T = self.until_T, self.positions_T

            def visible(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
                seen = (key <= query) & (query < until_T[key])
                return seen if window is None else seen & (positions_T[query] - positions_T[key] < window)

            self._block_masks[window] = block_mask(self.runs, self._pack.positions_T, window, visible, self.device)
        return self._block_masks[window]


def default_form(device: torch.device | str) -> Form:
    """`flex` on GPUs, `segments` elsewhere."""
    return "flex" if torch.device(device).type == "cuda" else "segments"


def use_tree_attention(model: PreTrainedModel, form: Form, longest: int | None = None) -> None:
    """Make `model` attend by tree layouts, of paths of at most `longest` tokens (None: of any length).

    Raises `ModelError` where its attention cannot be replaced, or a path could change what comes of another one.
    """
    name = type(model).__name__
    config = model.config.get_text_config()
    if not getattr(model, "_supports_attention_backend", False):
        raise ModelError(
            f"{name} computes its attention itself; tree attention needs a model that supports "
            "transformers' attention interface"
        )
    if config.model_type in _KEEP_LAYOUTS_BACK:
        raise ModelError(f"{name} hands no layout on to its attention; tree attention needs a model that does")
    layers = getattr(config, "layer_types", None) or ()
    others = sorted(set(layers) - {"full_attention", "sliding_attention"})
    if others or model._is_stateful:
        kind = others[0] if others else "recurrent"
        raise ModelError(f"{name} has {kind} layers, which would mix the branches of a tree")
    for kind, steady in _changing_frequencies(config).items():
        if longest is None or longest > steady:
            raise ModelError(
                f"{name} has rotary embeddings of type {kind}: a text of more than {steady} tokens would change all "
                f"that are computed beside it; make the context at most {steady}"
            )
    model.set_attn_implementation(_NAMES[form])


def _changing_frequencies(config: PretrainedConfig) -> dict[str, int]:
    """The types of rotary embeddings whose frequencies depend on the longest text of a forward pass, each with the
    length up to which they do not.
    """
    found = getattr(config, "rope_parameters", None) or {}
    steady = {}
    # One set of parameters, or one for each type of layer.
    for parameters in [found] if "rope_type" in found else found.values():
        kind = parameters.get("rope_type", "default") if isinstance(parameters, dict) else "default"
        if kind == "longrope":
            first = getattr(config, "original_max_position_embeddings", None)
            steady[kind] = parameters.get("original_max_position_embeddings") or first or config.max_position_embeddings
        elif "dynamic" in kind:
            steady[kind] = config.max_position_embeddings
    return steady


def use_plain_attention(model: PreTrainedModel) -> None:
    """Undo `use_tree_attention`: ordinary causal attention, as for generation."""
    # PyTorch's own attention knows no soft cap.
    model.set_attn_implementation("sdpa" if model._supports_sdpa else "eager")


def _checked(tree: TreeLayout | None, query: Tensor, kwargs: dict[str, Any]) -> TreeLayout:
    if tree is None:
        raise ModelError("tree attention was called without tree=TreeLayout(...)")
    if query.shape[0] != 1 or query.shape[2] != tree.size:
        raise ModelError(f"expected one pack of {tree.size} tokens, got queries of shape {tuple(query.shape)}")
    for name in ("s_aux", "sinks"):
        if kwargs.get(name) is not None:
            raise ModelError(f"this model's attention uses {name}, which tree attention does not compute")
    return tree


@torch.compiler.disable  # type: ignore[untyped-decorator]
def _dense(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    tree: TreeLayout | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    tree = _checked(tree, query, kwargs)
    dropout = dropout if module.training else 0.0
    output_1HTD = _written_out(query, key, value, tree.dense_mask(sliding_window), scaling, softcap, dropout)
    return output_1HTD.transpose(1, 2), None


def _written_out(
    query_1HLD: Tensor,
    key_1KPD: Tensor,
    value_1KPD: Tensor,
    visible_LP: Tensor,
    scaling: float | None,
    softcap: float | None,
    dropout: float,
) -> Tensor:
    """Attention of L tokens to P, [1, H, L, D], by its formula; `softcap` as in arXiv 2408.00118, section 2."""
    groups = query_1HLD.shape[1] // key_1KPD.shape[1]
    key_1HPD, value_1HPD = key_1KPD.repeat_interleave(groups, dim=1), value_1KPD.repeat_interleave(groups, dim=1)
    scores_1HLP = query_1HLD @ key_1HPD.transpose(2, 3)
    scores_1HLP = scores_1HLP * (scaling if scaling is not None else query_1HLD.shape[-1] ** -0.5)
    if softcap is not None:
        scores_1HLP = softcap * torch.tanh(scores_1HLP / softcap)
    scores_1HLP = scores_1HLP.masked_fill(~visible_LP, float("-inf"))
    weights_1HLP = functional.softmax(scores_1HLP, dim=-1, dtype=torch.float32).to(query_1HLD.dtype)
    return functional.dropout(weights_1HLP, dropout) @ value_1HPD


# Its loop over runs differs from pack to pack, as does the making of block masks in `_flex`: traced, blocks would be
# compiled anew for each number of runs. FlexAttention itself is compiled on its own.
@torch.compiler.disable  # type: ignore[untyped-decorator]
def _segments(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    tree: TreeLayout | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    tree = _checked(tree, query, kwargs)
    query, key, value = _as_computed(query, key, value)
    # Splitting once into pieces that every range is made of keeps the backward pass linear: the gradient of a
    # slice would be a full-sized tensor of zeros for each run.
    keys, values = torch.split(key, tree.pieces, dim=2), torch.split(value, tree.pieces, dim=2)
    dropout = dropout if module.training else 0.0
    outputs = []
    for number, query_1HLD in enumerate(torch.split(query, tree.run_lengths, dim=2)):
        pieces = tree.run_pieces[number]
        mask = tree.run_mask(number, sliding_window)
        key_1KPD = torch.cat([keys[piece] for piece in pieces], dim=2)
        value_1KPD = torch.cat([values[piece] for piece in pieces], dim=2)
        if softcap is not None:  # which PyTorch's own attention does not know
            visible_LP = _causal(query_1HLD) if mask is None else mask
            outputs.append(_written_out(query_1HLD, key_1KPD, value_1KPD, visible_LP, scaling, softcap, dropout))
            continue
        if not dropout and is_for_float32_gradients(query_1HLD, key_1KPD, value_1KPD):
            outputs.append(attend(query_1HLD, key_1KPD, value_1KPD, mask, scaling))
            continue
        outputs.append(
            functional.scaled_dot_product_attention(
                query_1HLD,
                key_1KPD,
                value_1KPD,
                attn_mask=mask,
                dropout_p=dropout,
                is_causal=mask is None and query_1HLD.shape[2] > 1,
                scale=scaling,
                enable_gqa=query.shape[1] != key.shape[1],
            )
        )
    return torch.cat(outputs, dim=2).transpose(1, 2), None


def _as_computed(*states: Tensor) -> list[Tensor]:
    """In the type of autocast. PyTorch would bring its own attention to it for each run anew, and FlexAttention never:
    that would compute in the float32 in which rotation leaves queries and keys.
    """
    device = states[0].device.type
    if not (torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device)):
        return list(states)
    return [tensor.to(torch.get_autocast_dtype(device)) for tensor in states]


def _causal(query_1HLD: Tensor) -> Tensor:
    length = query_1HLD.shape[2]
    return torch.ones(length, length, dtype=torch.bool, device=query_1HLD.device).tril()


@torch.compiler.disable  # type: ignore[untyped-decorator]
def _flex(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    tree: TreeLayout | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    tree = _checked(tree, query, kwargs)
    if dropout and module.training:
        raise ModelError("FlexAttention has no dropout; set attention_dropout to 0 in the model's configuration")
    whole = tree.in_blocks
    query, key, value = (
        functional.pad(states, (0, 0, 0, whole.size - tree.size)) for states in _as_computed(query, key, value)
    )
    output = _flex_attention(query.device)(
        query,
        key,
        value,
        score_mod=None if softcap is None else _capped(softcap, query.device),
        block_mask=whole.block_mask(sliding_window),
        scale=scaling,
        enable_gqa=query.shape[1] != key.shape[1],
    )
    return output[:, :, : tree.size].transpose(1, 2).contiguous(), None


@cache
def _capped(softcap: float, device: torch.device) -> Any:
    """Cached, as FlexAttention is compiled anew for every new function; a number in it could not be compiled."""
    cap = torch.tensor(softcap, device=device)

    def capped(score: Tensor, batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return cap * torch.tanh(score / cap)

    return capped


_LIMIT: dict[str, Any] = {"recompile_limit": 64}
"""Variants of head size, type, window and soft cap, with gradients and without, in one process; beyond PyTorch's own
limit FlexAttention fails.
"""


def _flex_attention(device: torch.device) -> Any:
    """FlexAttention is only fast compiled; on CPUs its eager form serves as a check of the mathematics."""
    from torch.nn.attention.flex_attention import flex_attention

    return compiled_flex_attention() if device.type == "cuda" else flex_attention


@cache
def compiled_flex_attention() -> Any:
    """FlexAttention for packs of any size."""
    from torch.nn.attention.flex_attention import flex_attention

    return torch.compile(flex_attention, dynamic=True, **_LIMIT)


for _form, _function in (("dense", _dense), ("segments", _segments), ("flex", _flex)):
    if f"steerlm_tree_{_form}" not in ALL_ATTENTION_FUNCTIONS:
        AttentionInterface.register(f"steerlm_tree_{_form}", _function)
