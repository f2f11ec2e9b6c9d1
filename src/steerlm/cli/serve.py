"""`steerlm serve`: an OpenAI-compatible server whose answers its users steer."""

from __future__ import annotations

import logging
import os
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter
from rich.console import Console

from steerlm.devices import pick_device
from steerlm.engines.make import EngineName, Precision
from steerlm.errors import ConfigError
from steerlm.server.guard_settings import GuardSettings
from steerlm.server.limits import ServerLimits
from steerlm.training.config import checked

if TYPE_CHECKING:
    from steerlm.engines.upstream import UpstreamSettings
    from steerlm.server.judge import Judge


def serve_command(
    model: Path,
    *,
    attribute_model: Path | None = None,
    name: str | None = None,
    policy: Path | None = None,
    host: str = "127.0.0.1",
    port: int = 8000,
    guard: Annotated[GuardSettings | None, Parameter(name="*")] = None,
    limits: Annotated[ServerLimits | None, Parameter(name="*")] = None,
    engine: EngineName = "auto",
    precision: Precision = "f32",
    cache_gb: float | None = None,
    upstream: str | None = None,
    upstream_model: str | None = None,
    upstream_context: int | None = None,
    upstream_first_seconds: float | None = None,
    upstream_next_seconds: float | None = None,
    device: str = "auto",
) -> None:
    """Serve a policy over OpenAI's API, to be steered by every request.

    steerlm serve runs/quickstart/policy --attribute-model runs/quickstart/attribute-model

    Clients use http://127.0.0.1:8000/v1; what can be asked for is at /docs. Without API keys (steerlm keys create) the
    server answers to this machine only. The log is a line of JSON for each request, on stderr, without contents.
    SIGTERM or Ctrl-C lets it finish what is under way; a second one ends it at once.

    Parameters
    ----------
    model
        Directory of a trained policy.
    attribute_model
        Directory of an attribute model, which measures and scores answers.
    name
        Name of the model in the API; without one, that of its directory.
    policy
        YAML file of the operator's rules: locked attributes, ranges, defaults, presets, system text.
    host
        Address to listen at; beyond this machine only with --keys or --insecure.
    port
        Port to listen at; 0 is any that is free.
    guard
        Who may use the server, and how much at a time.
    limits
        How much one request may ask for.
    engine
        What generates: openvino (CPU), torch (any device), upstream (another server), or auto, which is openvino where
        it is installed and fits, else torch.
    precision
        What openvino computes in: f32, so that an answer does not depend on the load; int8, which rounds activations to
        8 bits and on CPUs with VNNI is faster by a fifth to two thirds; or bf16, for twice the answers under load on
        CPUs with AMX. With these two an answer may change with the load, even with a seed.
    cache_gb
        Memory in GiB for what is remembered of prompts and answers; 2 without it, for torch on a GPU a quarter of what
        is free. Those under way count with openvino: where it is less than the model's context takes, it bounds prompt
        and answer.
    upstream
        Address of a server that has the policy, such as http://localhost:8001 of vLLM; its key, if it wants one, is
        taken from the environment variable STEERLM_UPSTREAM_KEY.
    upstream_model
        The name by which that server knows the policy; without one, the first that it lists.
    upstream_context
        Most tokens of prompt and answer there, where that server does not say.
    upstream_first_seconds
        Longest wait for that server's first token, its queue included; 300 without it.
    upstream_next_seconds
        Longest wait for each later token of it; 60 without it.
    device
        Torch device; auto takes a GPU where there is one.
    """
    settings = guard or GuardSettings()
    behind = _upstream(
        engine,
        upstream,
        settings.running,
        model=upstream_model,
        context=upstream_context,
        first_token_timeout=upstream_first_seconds,
        token_timeout=upstream_next_seconds,
    )
    from steerlm.server.access import check_binding
    from steerlm.server.policy import OperatorPolicy

    check_binding(host, settings.keys, settings.insecure)
    rules = OperatorPolicy.load(policy) if policy else OperatorPolicy()

    from steerlm.models.directory import ModelInfo
    from steerlm.models.prompting import load_prompting
    from steerlm.server.rules import Rules
    from steerlm.server.run import listen, make_server
    from steerlm.steering import prompt_ids, require_same_scales

    # What is wrong is said before the model is converted and loaded, which may take minutes.
    steered = load_prompting(model)
    Rules(steered.schema, rules).check_policy()
    if attribute_model:
        require_same_scales(steered.schema, ModelInfo.load(attribute_model, "attribute-model").schema)
    listen(host, port).close()

    from steerlm.engines import make_engine
    from steerlm.server.app import create_app
    from steerlm.server.guard import Guard
    from steerlm.server.logs import LogHandler
    from steerlm.server.state import ServerState

    standing = Guard(settings)
    logging.basicConfig(level=logging.WARNING, handlers=[LogHandler(standing.log)], force=True)
    told = Console(stderr=True, soft_wrap=True, highlight=False, markup=False)
    rows = 2 * settings.running  # an answer with guidance takes two
    generator = make_engine(model, steered, engine, device, behind, told.print, precision, _bytes(cache_gb), rows)
    judge = _judge(attribute_model, device) if attribute_model else None
    state = ServerState(
        steered,
        generator,
        name or model.resolve().name,
        rules,
        judge,
        limits or ServerLimits(),
        int(time.time()),
        standing.admission,
        standing.scoring,
    )
    app = create_app(state)
    standing.around(app)
    first = tuple(prompt_ids(steered, "Hello", steered.schema.defaults))
    try:
        with listen(host, port) as listener:
            at = f"http://{f'[{host}]' if ':' in host else host}:{listener.getsockname()[1]}"
            told.print(f"serving {state.name} at {at}/v1, described at {at}/docs")
            make_server(app, standing, generator, first, judge).run([listener])
    finally:
        generator.close()
        if judge is not None:
            judge.close()
        standing.close()


def _bytes(gigabytes: float | None) -> int | None:
    """Raises `ConfigError` where there is nothing left of it."""
    if gigabytes is not None and not 0 < gigabytes < 1 << 20:
        raise ConfigError(f"--cache-gb {gigabytes:g} must be above 0, in GiB")
    return None if gigabytes is None else int(gigabytes * (1 << 30))


def _upstream(engine: EngineName, url: str | None, running: int, **about: Any) -> UpstreamSettings | None:
    """The server behind ours, with what was given `about` it, and as many connections as answers may run here.

    Raises `ConfigError` where one is named without the other.
    """
    given = {name: value for name, value in about.items() if value is not None}
    if (engine == "upstream") != (url is not None) or (given and url is None):
        raise ConfigError("--engine upstream and --upstream URL go together, all else of --upstream-... with them")
    if url is None:
        return None
    from steerlm.engines.upstream import UpstreamSettings

    values = {"url": url, "connections": running, "api_key": os.environ.get("STEERLM_UPSTREAM_KEY"), **given}
    return checked(UpstreamSettings, values, where="--upstream")


def _judge(directory: Path, device: str) -> Judge:
    from steerlm.annotation.scorer import Scorer
    from steerlm.models.load import load_model
    from steerlm.server.judge import Judge

    return Judge(Scorer(load_model(directory, "attribute-model", pick_device(device))), directory.resolve().name)
