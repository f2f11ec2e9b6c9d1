"""A policy as a network of OpenVINO, with keys and values in blocks.

OpenVINO GenAI's reader makes the network of a GGUF file; its pipeline is not used, since it draws all requests from one
generator, counts the prompt in the repetition penalty, and shows no scores.

Shapes: N tokens of all rows of a step, K of them whose scores are wanted, V vocabulary.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
import openvino as ov
import openvino_genai
from numpy.typing import NDArray
from openvino import opset13
from openvino._offline_transformations import paged_attention_transformation
from transformers import AutoConfig, PretrainedConfig

from steerlm.checkpoints.gguf import Quantization, export_gguf, rotary
from steerlm.engines.make import Precision
from steerlm.errors import ConfigError, ModelError
from steerlm.files import write_json
from steerlm.models.base import cache_dir, loading, resolve
from steerlm.models.directory import ModelInfo

T = TypeVar("T")
Progress = Callable[[int, int], None]
_FORMAT = 2
_FOLDER = "openvino"
_ASIDE = ".converting-"
_ABANDONED = 24 * 3600.0
"""Seconds after which nobody is still at work on what was begun."""
_NETWORK, _FACTS = "openvino_model.xml", "facts.json"


class _Computing(NamedTuple):
    """The form of the weights, what is computed in, and in groups of how many activations are rounded to 8 bits: of 0
    they are not.
    """

    form: Quantization
    kind: str
    group: int


_COMPUTING: dict[Precision, _Computing] = {
    "f32": _Computing("q8_0", "f32", 0),  # rounded activations would double the error of the weights
    "int8": _Computing("q8_0", "f32", 32),  # as many as weights; in larger groups nothing is rounded at all
    "bf16": _Computing("f16", "bf16", 0),
}


def computes_bfloat16() -> bool:
    """Whether OpenVINO computes in bfloat16 on this CPU."""
    return "BF16" in _in_a_thread(lambda: ov.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES"))


def require_computable(precision: Precision) -> None:
    """Raise `ConfigError` where OpenVINO does not compute in a precision on this CPU."""
    if _COMPUTING[precision].kind == "bf16" and not computes_bfloat16():
        raise ConfigError(
            f"precision {precision}: this CPU lacks the instructions with which OpenVINO computes in bfloat16, such as "
            "AVX-512 or AMX; leave it out"
        )


@dataclass(frozen=True, slots=True)
class Row:
    """What to compute of one row: `ids` after the `past` tokens that its blocks hold, and after how many of the last of
    them scores are wanted.
    """

    ids: Sequence[int]
    past: int
    blocks: Sequence[int]
    wanted: int


class PagedNetwork:
    """A compiled network with its cache of keys and values.

    Raises `ModelError` where OpenVINO cannot read the network.
    """

    def __init__(self, folder: Path, cache_bytes: int, precision: Precision = "f32") -> None:
        facts = json.loads((folder / _FACTS).read_text(encoding="utf-8"))
        self.context = int(facts["context"])
        compiled = _in_a_thread(partial(_compiled, folder, precision, facts["turns"], facts["scale"]))
        self.vocabulary = compiled.output(0).get_partial_shape()[-1].get_length()
        self._request = compiled.create_infer_request()
        ports = [port for port in compiled.inputs if "_cache." in port.get_any_name()]
        shapes = [[size.get_length() for size in list(port.get_partial_shape())[1:]] for port in ports]
        kinds = [port.get_element_type() for port in ports]
        size = sum(kind.bitwidth // 8 * int(np.prod(shape)) for kind, shape in zip(kinds, shapes, strict=True))
        self.blocks = max(cache_bytes // size, 1)
        self._caches: list[Any] = []
        for port, kind, shape in zip(ports, kinds, shapes, strict=True):
            cache = ov.Tensor(kind, ov.Shape([self.blocks, *shape]))
            self._request.set_tensor(port, cache)
            self._caches.append(cache.data)

    def copy(self, source: int, target: int) -> None:
        """Copy a block."""
        for cache in self._caches:
            cache[target] = cache[source]

    def run(self, rows: Sequence[Row]) -> NDArray[np.float32]:
        """Compute, and note keys and values in the rows' blocks; returns the scores [K, V] wanted of each.

        The array is overwritten by the next call.
        """
        ends = np.cumsum([len(row.ids) for row in rows])
        wanted = [place for end, row in zip(ends, rows, strict=True) for place in range(end - row.wanted, end)]
        positions = [np.arange(row.past, row.past + len(row.ids)) for row in rows]
        self._set("input_ids", np.concatenate([np.asarray(row.ids, dtype=np.int64) for row in rows]))
        self._set("position_ids", np.concatenate(positions).astype(np.int64))
        self._set("past_lens", [row.past for row in rows])
        self._set("subsequence_begins", [0, *ends])
        self._set("block_indices", [block for row in rows for block in row.blocks])
        self._set("block_indices_begins", [0, *np.cumsum([len(row.blocks) for row in rows])])
        self._set("max_context_len", max(row.past + len(row.ids) for row in rows))
        self._set("scored", wanted or [0])
        self._request.infer()
        scores: NDArray[np.float32] = self._request.get_output_tensor(0).data
        return scores.reshape(-1, self.vocabulary)[: len(wanted)]

    def _set(self, name: str, values: Any) -> None:
        kind = values.dtype if isinstance(values, np.ndarray) else np.int32
        self._request.set_tensor(name, ov.Tensor(np.array(values, dtype=kind)))


def _compiled(folder: Path, precision: Precision, turns: Sequence[float], scale: float) -> Any:
    core = ov.Core()
    try:
        model = core.read_model(folder / _NETWORK)
        _turn(model, turns, scale)
        paged_attention_transformation(model)
        _score_some(model)
        computing = _COMPUTING[precision]
        return core.compile_model(
            model,
            "CPU",
            {
                "PERFORMANCE_HINT": "LATENCY",
                # Else it keeps twice as much for each number of rows that it meets, and was seen to be no faster for it
                # (docs/results.md).
                "CPU_RUNTIME_CACHE_CAPACITY": 0,
                "INFERENCE_PRECISION_HINT": computing.kind,
                "KV_CACHE_PRECISION": computing.kind,
                "DYNAMIC_QUANTIZATION_GROUP_SIZE": str(computing.group),
            },
        )
    except RuntimeError as error:
        raise ModelError(
            f"{folder}: OpenVINO cannot use this network: {str(error).strip().splitlines()[-1]}"
        ) from error


def _in_a_thread(work: Callable[[], T]) -> T:
    """Load OpenVINO's CPU plugin in a thread that ends. It gives the thread that loads it a stack for signals, and when
    it is unloaded may free that and leave it in place: the next signal, such as Ctrl-C, would crash the process.
    """
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(work).result()


def _turn(model: Any, turns: Sequence[float], scale: float) -> None:
    """Give the network its rotary embeddings (see `rotary`), whose scaling GenAI's reader passes over."""
    found = [node for node in model.get_ops() if node.get_type_name() in ("Cos", "Sin")]
    if not found:
        raise RuntimeError("it has no rotary embeddings")
    ours = opset13.constant(np.array(turns, dtype=np.float32)[None, :, None])
    for node in found:
        product = node
        while product.get_type_name() != "MatMul":
            product = product.input_value(0).get_node()
        theirs = product.input_value(0).get_node().input_value(0)
        if theirs.get_partial_shape() != ours.output(0).get_partial_shape():
            raise RuntimeError("its rotary embeddings are not where they were expected")
        theirs.replace(ours.output(0))
        users = node.output(0).get_target_inputs()
        scaled = opset13.multiply(node, np.float32(scale))
        for user in users:
            user.replace_source_output(scaled.output(0))


def _score_some(model: Any) -> None:
    """Give the network an input `scored`: the places of the tokens whose scores are wanted. The others cost nothing."""
    product = model.outputs[0].get_node().input_value(0).get_node()
    if product.get_type_name() != "MatMul":
        raise RuntimeError(f"its scores come from a {product.get_type_name()}")
    scored = opset13.parameter([-1], np.int32, name="scored")
    scored.output(0).set_names({"scored"})
    states = opset13.gather(product.input_value(0), scored, opset13.constant(np.array(0, dtype=np.int64)))
    product.input(0).replace_source_output(states.output(0))
    model.add_parameters([scored])
    model.validate_nodes_and_infer_types()


def prepared(directory: Path, precision: Precision = "f32", progress: Progress | None = None) -> Path:
    """The folder with OpenVINO's form of a policy, with the weights that go with a precision, made on first use: in the
    model directory, or where that cannot be written, in the user's cache. `progress` is told how many tensors are
    written, of how many.

    Raises `ModelError` for architectures that GGUF files are not written of, or OpenVINO does not read.
    """
    info = ModelInfo.load(directory, "policy")
    form = _COMPUTING[precision].form
    own = directory / _FOLDER
    places = [own, cache_dir() / _FOLDER]
    digest = hashlib.sha256(json.dumps(_settings(directory, info), sort_keys=True).encode()).hexdigest()[:8]
    kind = f"{info.fingerprint}-{_FORMAT}-{digest}"
    name = f"{kind}-{form}"
    for place in places:
        if (place / name / _FACTS).is_file():
            return place / name
    if _has_lost_its_base(info):
        # Whatever its base's config.json said when it was converted last.
        forms = [file for place in places for file in place.glob(f"{info.fingerprint}-{_FORMAT}-*-{form}/{_FACTS}")]
        if forms:
            return max(forms, key=lambda file: file.stat().st_mtime_ns).parent
    writable = [place for place in places if _is_writable(place)]
    if not writable:
        raise ModelError(f"neither {places[0]} nor {places[1]} can be written, where OpenVINO's form of the model goes")
    place = writable[0]
    with tempfile.TemporaryDirectory(dir=place, prefix=_ASIDE, ignore_cleanup_errors=True) as temporary:
        _convert(directory, _config(directory, info), Path(temporary), form, progress)
        if place == own:
            for other in place.iterdir():
                with suppress(OSError):  # another process was first
                    if _is_old(other, kind):
                        shutil.rmtree(other, ignore_errors=True)
        with suppress(OSError):  # another process was first
            Path(temporary).rename(place / name)
    return place / name


def _is_old(folder: Path, kind: str) -> bool:
    """Whether it is a form of ours of weights or settings that were here before, or what a killed conversion left."""
    if folder.name.startswith(_ASIDE):
        return time.time() - folder.stat().st_mtime > _ABANDONED
    return (folder / _FACTS).is_file() and not folder.name.startswith((".", kind))


def _is_writable(place: Path) -> bool:
    try:
        place.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=place):
            return True
    except OSError:
        return False


def _has_lost_its_base(info: ModelInfo) -> bool:
    """Whether it is an adapter on a base that was in a folder which is gone."""
    return info.base is not None and Path(info.base.name).is_absolute() and not Path(info.base.name).is_dir()


def _settings(directory: Path, info: ModelInfo) -> list[Any]:
    """What a form depends on besides the weights, such as scaling for a longer context in config.json. Of the base of
    an adapter only where that is in a folder: one of the hub stays as it is, and is not asked for again.
    """
    if info.base and not Path(info.base.name).is_dir():
        return []
    config = _config(directory, info)
    return [getattr(config, name, None) for name in ("max_position_embeddings", "rope_parameters")]


def _config(directory: Path, info: ModelInfo) -> PretrainedConfig:
    source = resolve(info.base.name) if info.base else directory
    with loading(source):
        config: PretrainedConfig = AutoConfig.from_pretrained(source)
    if getattr(config, "attention_bias", False):
        raise ModelError(f"{directory} has biases in its attention, which OpenVINO's reader of GGUF files gets wrong")
    return config


def _convert(
    directory: Path, config: PretrainedConfig, out: Path, form: Quantization, progress: Progress | None
) -> None:
    file = out / "model.gguf"
    export_gguf(directory, file, form, progress)
    try:
        _in_a_thread(partial(_save_network, file))
    except RuntimeError as error:
        raise ModelError(
            f"{directory}: OpenVINO cannot read this model: {str(error).strip().splitlines()[-1]}"
        ) from error
    for left_over in (file, *out.glob("openvino_*tokenizer.*")):
        left_over.unlink()
    turns, scale = rotary(config)
    write_json(out / _FACTS, {"context": config.max_position_embeddings, "turns": turns.tolist(), "scale": scale})
    out.chmod(0o755)


def _save_network(file: Path) -> None:
    """Read a GGUF file, which leaves OpenVINO's form of it beside it. The pipeline itself is not used."""
    openvino_genai.LLMPipeline(str(file), "CPU", ATTENTION_BACKEND="SDPA", enable_save_ov_model=True)
