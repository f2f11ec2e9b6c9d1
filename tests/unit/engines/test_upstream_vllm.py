"""The upstream engine against vLLM itself: set STEERLM_VLLM_PYTHON to an interpreter that has it to run these.

On a machine without a GPU that is vLLM for CPUs. Its server takes minutes to start.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from pathlib import Path

import httpx2
import pytest

from benchmarks.serving.servers import serving, vllm
from steerlm.attributes import STEERLM
from steerlm.engines import Request, Sampling, TorchEngine, batch, complete, stream
from steerlm.engines.base import Completion, Engine, Piece
from steerlm.engines.upstream import UpstreamEngine, UpstreamSettings
from steerlm.errors import ConfigError, EngineError
from steerlm.models.load import SteerModel, load_model, new_model
from steerlm.sources.bundled import held_out_prompts
from steerlm.steering import asked_values, prompt_ids
from tiny import TOKENIZERS, save_base, spread

PYTHON = os.environ.get("STEERLM_VLLM_PYTHON")
pytestmark = [
    pytest.mark.skipif(not PYTHON, reason="asked for with STEERLM_VLLM_PYTHON=/path/to/python"),
    pytest.mark.timeout(1800),
]
CONTEXT = 1024
# vLLM for CPUs has kernels for heads of 32 numbers and more.
SHAPE = {"hidden_size": 64, "intermediate_size": 96, "num_attention_heads": 2, "num_key_value_heads": 1}


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("vllm")
    model = new_model("policy", save_base(folder / "base", TOKENIZERS["chatml"](), **SHAPE), STEERLM)
    spread(model.network)
    model.save(folder / "policy")
    return folder / "policy"


@pytest.fixture(scope="module")
def model(policy: Path) -> SteerModel:
    return load_model(policy, "policy")


@pytest.fixture(scope="module")
def url(policy: Path) -> Iterator[str]:
    # What it keeps for keys and values would else be a share of all memory.
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VLLM_CPU_KVCACHE_SPACE", "1")
        patch.setenv("NO_PROXY", "127.0.0.1")
        patch.delenv("PYTHONPATH", raising=False)
        command = [*vllm(Path(PYTHON or ""), policy, CONTEXT), "--enforce-eager", "--enable-prompt-tokens-details"]
        with serving(command, policy / "vllm.log", threads=1) as server:
            yield server.url


@pytest.fixture
def engine(url: str, model: SteerModel) -> Iterator[UpstreamEngine]:
    engine = UpstreamEngine(UpstreamSettings(url=url), model.renderer, model.renderer.stop_ids)
    yield engine
    engine.close()


def prompts_of(model: SteerModel) -> list[list[int]]:
    values = asked_values(model.schema, {"verbosity": 1})
    return [prompt_ids(model, text, values) for text in (*held_out_prompts()[:3], "Hi")]


def both(engine: Engine, model: SteerModel, requests: list[Request]) -> tuple[list[Completion], list[Completion]]:
    reference = TorchEngine(model)
    try:
        return complete(engine, requests), complete(reference, requests)
    finally:
        reference.close()


def test_it_tells_its_context(engine: UpstreamEngine) -> None:
    assert engine.context == CONTEXT


def test_greedy_answers_are_those_of_torch(engine: UpstreamEngine, model: SteerModel) -> None:
    theirs, ours = both(engine, model, batch(prompts_of(model), Sampling(max_tokens=24)))
    assert theirs == ours
    assert all(min(answer.tokens) >= 0 for answer in theirs)


def test_ends_that_are_barred_for_a_while(engine: UpstreamEngine, model: SteerModel) -> None:
    theirs, ours = both(engine, model, batch(prompts_of(model), Sampling(max_tokens=24, min_tokens=12)))
    assert theirs == ours


def test_the_same_seed_gives_the_same_answer(engine: UpstreamEngine, model: SteerModel) -> None:
    sampling = Sampling(max_tokens=24, temperature=1.0, top_p=0.9, top_k=50, seed=3)
    requests = batch(prompts_of(model), sampling)
    first = complete(engine, requests)
    assert complete(engine, requests) == first
    assert complete(engine, batch(prompts_of(model), Sampling(max_tokens=24, temperature=1.0, seed=99))) != first


def test_stop_strings(engine: UpstreamEngine, model: SteerModel) -> None:
    """At the third character of what is answered without one, so that it does stop."""
    prompt = prompts_of(model)[0]
    free = complete(engine, batch([prompt], Sampling(max_tokens=24)))[0].text
    stop = free[2:4]
    theirs, ours = both(engine, model, batch([prompt], Sampling(max_tokens=24, stop=(stop,))))
    assert theirs[0].text == ours[0].text
    assert (theirs[0].finish, stop in theirs[0].text) == ("stop", False)


def test_white_space_is_kept_where_it_is_asked_for(engine: UpstreamEngine, model: SteerModel) -> None:
    requests = [Request(tuple(ids), Sampling(max_tokens=24, min_tokens=24), trim=False) for ids in prompts_of(model)]
    for answer in complete(engine, requests):
        assert answer.text == model.renderer.tokenizer.decode(answer.tokens, skip_special_tokens=True)


def test_log_probabilities(engine: UpstreamEngine, model: SteerModel) -> None:
    requests = batch(prompts_of(model)[:1], Sampling(max_tokens=12, min_tokens=12, logprobs=3))
    reference = TorchEngine(model)
    theirs, ours = (list(stream(one, requests)) for one in (engine, reference))
    reference.close()
    assert [piece.token for piece in theirs] == [piece.token for piece in ours]
    for there, here in zip(theirs, ours, strict=True):
        assert there.logprob is not None
        assert here.logprob is not None
        assert there.logprob.logprob == pytest.approx(here.logprob.logprob, abs=1e-3)
        assert [token for token, _ in there.logprob.top] == [token for token, _ in here.logprob.top]


def test_what_its_cache_saved_is_told(engine: UpstreamEngine) -> None:
    prompt = tuple(5 + k % 40 for k in range(600))
    complete(engine, [Request(prompt, Sampling(max_tokens=1))])
    for salt, is_cached in (("", True), ("one", False), ("one", True), ("other", False)):
        [piece] = stream(engine, [Request(prompt, Sampling(max_tokens=1), salt=salt)])
        assert (piece.cached >= 256) == is_cached


def test_a_cancelled_answer_is_stopped_there(engine: UpstreamEngine, url: str) -> None:
    begun, delivered = threading.Event(), []

    def deliver(piece: Piece | Exception) -> None:
        delivered.append(piece)
        begun.set()

    cancel = engine.submit([Request((5, 6, 7), Sampling(max_tokens=1000, min_tokens=1000))], deliver)
    assert begun.wait(60)
    cancel()
    seen = len(delivered)
    for _ in range(600):
        if running(url) == 0:
            break
        threading.Event().wait(0.1)
    assert running(url) == 0
    assert len(delivered) == seen < 1000


def running(url: str) -> float:
    metrics = httpx2.get(f"{url}/metrics", trust_env=False).text.splitlines()
    return sum(float(line.split()[-1]) for line in metrics if line.startswith("vllm:num_requests_running"))


def test_errors(engine: UpstreamEngine, url: str, model: SteerModel) -> None:
    with pytest.raises(ConfigError, match="serves no model 'other'"):
        UpstreamEngine(UpstreamSettings(url=url, model="other"), model.renderer, ())
    stranger = UpstreamEngine(UpstreamSettings(url=url, model="other", context=99), model.renderer, ())
    with pytest.raises(EngineError, match=r"\(404\)"):
        list(stream(stranger, [Request((5,), Sampling(max_tokens=9))]))
    stranger.close()
    wide = UpstreamEngine(UpstreamSettings(url=url, context=9999), model.renderer, model.renderer.stop_ids)
    with pytest.raises(ConfigError, match=r"\(400\)"):
        list(stream(wide, [Request((5,) * (CONTEXT + 1), Sampling(max_tokens=9))]))
    # A refusal for another reason takes no field away.
    [piece] = stream(wide, [Request((5,), Sampling(max_tokens=1))])
    assert piece.token >= 0
    wide.close()
