"""The OpenVINO engine against the torch engine with the same weights, each rounded to 8 bits."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal, cast

import numpy as np
import pytest
import torch

from steerlm.attributes import STEERLM
from steerlm.engines import (
    Engine,
    Guidance,
    Request,
    Sampling,
    TorchEngine,
    batch,
    complete,
    engine_for,
    make_engine,
    openvino_network,
    stream,
)
from steerlm.engines.make import LocalEngine, conversion_progress
from steerlm.engines.openvino import OpenVinoCore, OpenVinoEngine
from steerlm.engines.openvino_network import PagedNetwork, prepared
from steerlm.engines.runner import Runner, Token
from steerlm.engines.torch import TorchCore
from steerlm.errors import ConfigError, EngineError, ModelError
from steerlm.models.load import SteerModel, load_model, new_model
from steerlm.models.prompting import load_prompting
from steerlm.sources.bundled import held_out_prompts
from steerlm.steering import asked_values, prompt_ids
from tiny import TOKENIZERS, save_base
from tiny_openvino import IN_BFLOAT16, round_weights, saved


@pytest.fixture(scope="module")
def rounded(directory: Path) -> SteerModel:
    model = load_model(directory, "policy")
    round_weights(model)
    return model


def engine_of(network: PagedNetwork, model: SteerModel, max_batch: int = 64, chunk: int = 256) -> Runner:
    return Runner(OpenVinoCore(network, model.renderer.stop_ids, max_batch, chunk), model.renderer)


@pytest.fixture
def engine(network: PagedNetwork, rounded: SteerModel) -> Iterator[Runner]:
    engine = engine_of(network, rounded)
    yield engine
    engine.close()


def prompts_of(model: SteerModel) -> list[list[int]]:
    asked = [asked_values(model.schema, {"verbosity": level}) for level in (0, 4)]
    return [prompt_ids(model, text, values) for values in asked for text in (*held_out_prompts()[:3], "Hi")]


def test_answers_are_those_of_torch(engine: Runner, network: PagedNetwork, rounded: SteerModel) -> None:
    prompts = prompts_of(rounded)
    kinds = [
        Sampling(max_tokens=20),
        Sampling(max_tokens=20, temperature=0.9, top_p=0.9, top_k=50, seed=4),
        Sampling(max_tokens=20, repetition_penalty=1.3, min_tokens=12),
    ]
    requests = [request for sampling in kinds for request in batch(prompts, sampling)]
    expected = complete(TorchEngine(rounded), requests)
    assert complete(engine, requests) == expected
    assert [complete(engine, [request])[0] for request in requests[:10]] == expected[:10]
    assert complete(engine_of(network, rounded, max_batch=3, chunk=7), requests) == expected


def test_logprobs_and_guidance_are_those_of_torch(engine: Runner, rounded: SteerModel) -> None:
    own, other, *_ = (tuple(ids) for ids in prompts_of(rounded))
    requests = [
        Request(own, Sampling(max_tokens=9, logprobs=3)),
        Request(own, Sampling(max_tokens=9, logprobs=0), Guidance(other, 2.5)),
    ]
    for ours, theirs in zip(stream(engine, requests), stream(TorchEngine(rounded), requests), strict=True):
        assert (ours.request, ours.token) == (theirs.request, theirs.token)
        assert ours.logprob is not None
        assert theirs.logprob is not None
        assert ours.logprob.logprob == pytest.approx(theirs.logprob.logprob, abs=5e-3)
        assert [token for token, _ in ours.logprob.top] == [token for token, _ in theirs.logprob.top]


def test_logprobs_of_prompts_are_those_of_torch(engine: Runner, rounded: SteerModel) -> None:
    """Of a prompt longer than a step, known from before, and beside others that share it."""
    long = tuple((prompts_of(rounded)[0] * 30)[:600])
    complete(engine, [Request(long, Sampling(max_tokens=2))])
    scored = Request(long, Sampling(max_tokens=4), prompt_logprobs=2)
    requests = [Request(long, Sampling(max_tokens=4)), scored]
    reference = TorchEngine(rounded)
    [expected] = [piece.prompt for piece in stream(reference, [scored]) if piece.prompt]
    reference.close()
    pieces = list(stream(engine, requests))
    [told] = [piece.prompt for piece in pieces if piece.prompt]
    plain, beside = ([piece.token for piece in pieces if piece.request == number] for number in (0, 1))
    assert plain == beside
    assert len(told) == len(long) - 1
    assert [item.logprob for item in told] == pytest.approx([item.logprob for item in expected], abs=2e-3)
    for here, there in zip(told, expected, strict=True):
        assert [value for _, value in here.top] == pytest.approx([value for _, value in there.top], abs=2e-3)


def test_what_prompts_begin_with_is_computed_once(engine: Runner, network: PagedNetwork, rounded: SteerModel) -> None:
    computed: list[int] = []
    run = network.run
    network.run = lambda rows: computed.append(sum(len(row.ids) for row in rows)) or run(rows)  # type: ignore[assignment, func-returns-value, method-assign]
    talk = [5 + k % 40 for k in range(200)]
    requests = batch([[*talk, 60 + level, 7] for level in range(10)], Sampling(max_tokens=3, min_tokens=3))
    pieces = list(stream(engine, requests))
    network.run = run  # type: ignore[method-assign]
    assert sum(computed) == 200 + 10 * 2 + 10 * 2
    assert sorted(piece.cached for piece in pieces if piece.finish) == [0] + [200] * 9
    expected = complete(TorchEngine(rounded), requests)
    for number, answer in enumerate(expected):
        assert tuple(piece.token for piece in pieces if piece.request == number) == answer.tokens


def test_the_next_turn_goes_on_from_the_last(engine: Runner, rounded: SteerModel) -> None:
    first = prompts_of(rounded)[0]
    answer = complete(engine, batch([first], Sampling(max_tokens=40, min_tokens=40)))[0]
    following = batch([[*first, *answer.tokens, 9, 10, 11]], Sampling(max_tokens=6))
    pieces = list(stream(engine, following))
    assert {piece.cached for piece in pieces} == {len(first) + 39}
    assert tuple(piece.token for piece in pieces) == complete(TorchEngine(rounded), following)[0].tokens


def test_a_small_cache_makes_requests_wait_and_forgets(
    directory: Path, network: PagedNetwork, rounded: SteerModel
) -> None:
    small = PagedNetwork(prepared(directory), (1 << 22) // network.blocks * 12)
    assert small.blocks == 12
    requests = batch(prompts_of(rounded) * 3, Sampling(max_tokens=10))
    assert complete(engine_of(small, rounded), requests) == complete(TorchEngine(rounded), requests)
    engine = engine_of(small, rounded)
    assert engine.context == 11 * 32
    assert len(complete(engine, batch([[5] * 340], Sampling(max_tokens=12, min_tokens=12)))[0].tokens) == 12
    with pytest.raises(ConfigError, match="context of 352"):
        engine.submit(batch([[5] * 341], Sampling(max_tokens=12)), lambda piece: None)
    with pytest.raises(ConfigError, match=r"need 14 blocks of memory, and there are 12; .*leave guidance out"):
        engine.submit([Request((5,) * 180, Sampling(max_tokens=12), Guidance((6,) * 180, 2.0))], lambda piece: None)


def test_the_cache_has_the_size_that_is_asked_for(directory: Path, rounded: SteerModel) -> None:
    said: list[str] = []
    prompting = load_prompting(directory)
    engine = make_engine(directory, prompting, "openvino", "cpu", say=said.append, cache_bytes=1 << 19)
    assert engine.context < 2048
    assert f"room for {engine.context} tokens of prompt and answer, of the 2048" in said[-1]
    engine.close()
    with pytest.raises(ConfigError, match="too small to answer anything"):
        make_engine(directory, prompting, "openvino", "cpu", cache_bytes=1)
    with pytest.raises(ConfigError, match="size of the cache is for engines that compute here, not upstream"):
        make_engine(directory, prompting, "upstream", cache_bytes=1 << 20)


@pytest.mark.parametrize(("name", "core"), [("openvino", OpenVinoCore), ("torch", TorchCore)])
def test_as_many_rows_are_computed_together_as_asked_for(
    name: Literal["openvino", "torch"], core: type, directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[int] = []
    original = core.step  # type: ignore[attr-defined]

    def step(self: Any) -> list[Token]:
        tokens: list[Token] = original(self)
        made.append(len(tokens))
        return tokens

    monkeypatch.setattr(core, "step", step)
    prompting = load_prompting(directory)
    requests = batch([[5, 6, 7], [8, 9], [10, 11]], Sampling(max_tokens=4, min_tokens=4))
    for rows in (1, 2):
        made.clear()
        with closing(make_engine(directory, prompting, name, "cpu", max_batch=rows)) as engine:
            complete(engine, requests)
        assert max(made) == rows
        assert sum(made) == 12


def test_how_far_a_conversion_is(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of 25 tensors that take no time, or half a second each, so that a tenth is passed after three seconds."""
    first, last = (
        "converting the model for OpenVINO, once",
        "the weights are converted; OpenVINO reads them and saves its own form",
    )
    now = 0.0
    monkeypatch.setattr("time.monotonic", lambda: now)
    for seconds, shares in ((0.0, []), (0.5, range(20, 91, 10))):
        said: list[str] = []
        progress = conversion_progress(said.append)
        for done in range(1, 26):
            now += seconds
            progress(done, 25)
        assert said == [first, *(f"{share}% of the weights are converted" for share in shares), last]


@IN_BFLOAT16
def test_in_bfloat16(directory: Path, rounded: SteerModel) -> None:
    """Any answer will do, as long as it is whole and its prompt is taken from the cache the second time."""
    engine = OpenVinoEngine(directory, precision="bf16", cache_bytes=1 << 22)
    requests = batch(prompts_of(rounded), Sampling(max_tokens=40, min_tokens=40, logprobs=1))
    assert all(len(answer.tokens) >= 40 for answer in complete(engine, requests))
    again = list(stream(engine, requests))
    assert all(piece.cached >= len(requests[piece.request].prompt) - 1 for piece in again)
    engine.close()
    assert len(list((directory / "openvino").iterdir())) == 2


def test_a_cpu_without_bfloat16(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Is told so before anything is converted or written, whether or not the engine is asked for by name."""
    monkeypatch.setattr(openvino_network, "computes_bfloat16", lambda: False)
    policy, refusal = saved(tmp_path, "llama"), "precision bf16: this CPU lacks"
    prompting = load_prompting(tmp_path / "policy")
    names: tuple[LocalEngine, ...] = ("openvino", "auto")
    for name in names:
        with pytest.raises(ConfigError, match=refusal):
            make_engine(tmp_path / "policy", prompting, name, "cpu", precision="bf16")
        with monkeypatch.context() as patched:
            patched.setattr(SteerModel, "save", lambda *_: pytest.fail("written"))
            with pytest.raises(ConfigError, match=refusal), engine_for(policy, None, name, precision="bf16"):
                pass
    with pytest.raises(ConfigError, match=refusal):
        OpenVinoEngine(tmp_path / "policy", precision="bf16")
    assert not (tmp_path / "policy" / "openvino").exists()


def test_models_that_it_cannot_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_base(tmp_path / "base", TOKENIZERS["llama2"](), "mistral")
    new_model("policy", tmp_path / "base", STEERLM).save(tmp_path / "policy")
    prompting = load_prompting(tmp_path / "policy")
    with pytest.raises(ModelError, match=r"mistral.*--engine torch"):
        make_engine(tmp_path / "policy", prompting, "openvino", "cpu")
    said: list[str] = []
    engine = make_engine(tmp_path / "policy", prompting, "auto", "cpu", say=said.append, precision="int8")
    assert isinstance(engine, TorchEngine)
    assert "engine torch, not openvino" in said[0]
    assert said[1:] == ["precision int8 is for engine openvino; torch computes in float32"]
    with pytest.raises(ConfigError, match="precision bf16 is for engine openvino"):
        make_engine(tmp_path / "policy", prompting, "torch", precision="bf16")
    with pytest.raises(ConfigError, match="address of a server"):
        make_engine(tmp_path / "policy", prompting, "upstream")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"steerlm\[serve\]"):
        make_engine(tmp_path / "policy", prompting, "openvino", "cpu")


@pytest.mark.parametrize("blocks", range(4, 9))
def test_the_context_of_guidance_is_what_two_rows_have_room_for(blocks: int) -> None:
    core = OpenVinoCore(cast(PagedNetwork, SimpleNamespace(context=10_000, blocks=blocks, vocabulary=9)), [0], 4, 16)

    def check(tokens: int) -> None:
        prompt = (1,) * (tokens - 1)
        core.check(Request(prompt, Sampling(max_tokens=1), Guidance(prompt, 1.5)))

    check(core.guided_context)
    with pytest.raises(ConfigError, match="computed twice for guidance"):
        check(core.guided_context + 1)


def test_for_a_model_that_is_loaded(directory: Path) -> None:
    """The same answers, wherever the model lies; a network in memory is what answers, not what is on disk."""
    model = load_model(directory, "policy")
    requests = batch(prompts_of(model), Sampling(max_tokens=12))
    with engine_for(model, directory) as engine:
        assert isinstance(engine, OpenVinoEngine)
        there = complete(engine, requests)
    with engine_for(model) as engine:
        assert isinstance(engine, OpenVinoEngine)
        assert complete(engine, requests) == there
    with torch.no_grad():
        model.network.get_input_embeddings().weight.mul_(-1)
    with engine_for(model) as engine:
        assert complete(engine, requests) != there
    with engine_for(model, directory, "torch") as engine:
        assert isinstance(engine, TorchEngine)
    with pytest.raises(ConfigError, match="precision bf16 is for"), engine_for(model, name="torch", precision="bf16"):
        pass


def test_nothing_is_kept_of_what_failed(network: PagedNetwork, rounded: SteerModel, monkeypatch: Any) -> None:
    """What a failing step left is nothing that later answers may go on from."""
    requests = batch([[5 + k % 40 for k in range(90)]], Sampling(max_tokens=6))
    expected = complete(TorchEngine(rounded), requests)

    def fail(rows: Any) -> None:
        raise RuntimeError("no memory")

    engine = engine_of(network, rounded)
    with monkeypatch.context() as patch:
        patch.setattr(network, "run", fail)
        with pytest.raises(EngineError, match="no memory"):
            complete(engine, requests)
    pieces = list(stream(engine, requests))
    assert tuple(piece.token for piece in pieces) == expected[0].tokens
    assert {piece.cached for piece in pieces} == {0}


def test_other_salts_go_on_from_nothing(engine: Runner, rounded: SteerModel) -> None:
    """Together, and after each other."""
    ids = tuple(5 + k % 40 for k in range(90))
    requests = [Request(ids, Sampling(max_tokens=4), salt=salt) for salt in "aabb"]
    assert sorted(piece.cached for piece in stream(engine, requests) if piece.finish) == [0, 0, 89, 89]
    for salt, cached in (("a", 89), ("b", 89), ("c", 0), ("", 0)):
        *_, last = stream(engine, [Request(ids, Sampling(max_tokens=4), salt=salt)])
        assert last.cached == cached


def test_activations_in_8_bits(directory: Path, rounded: SteerModel) -> None:
    """Near the scores of the same weights, and not those where the CPU has instructions for it (VNNI)."""
    requests = [
        Request(tuple(ids), Sampling(max_tokens=1, logprobs=0), prompt_logprobs=0) for ids in prompts_of(rounded)
    ]

    def scores(engine: Engine) -> list[float]:
        with closing(engine):
            return [item.logprob for piece in stream(engine, requests) for item in piece.prompt]

    found, expected = scores(OpenVinoEngine(directory, precision="int8")), scores(TorchEngine(rounded))
    differences = np.abs(np.array(found) - np.array(expected))
    least = 1e-3 if torch.cpu._is_vnni_supported() else 0
    assert least < differences.mean() < 0.1
