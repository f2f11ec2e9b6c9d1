"""The Modelfile against the renderer: its template, put into Jinja's words, makes the same prompts."""

from __future__ import annotations

import re
from pathlib import Path

import jinja2
import pytest

from steerlm.attributes import STEERLM
from steerlm.cli.main import run
from steerlm.models.load import SteerModel, new_model
from steerlm.steering import Turn, asked_values, prompt_ids
from tiny import TOKENIZERS, save_base

# Go's template actions that a Modelfile may have here, and Jinja's for the same.
ACTIONS = {
    r"\{\{ \$(\w+) := (\".*?\") \}\}": r"{% set \1 = \2 %}",
    r"\{\{ \$(\w+) := or \.System (\".*?\") \}\}": r"{% set \1 = System or \2 %}",
    r"\{\{ if \$(\w+) \}\}": r"{% if \1 %}",
    r"\{\{ range \.Messages \}\}(.*)\{\{ end \}\}": r"{% for message in Messages %}\1{% endfor %}",
    r"\{\{ (if|else if) eq \.Role \"(\w+)\" \}\}": r"{% \1 message.role == '\2' %}",
    r"\{\{ \.Content \}\}": r"{{ message.content }}",
    r"\{\{ \$(\w+) \}\}": r"{{ \1 }}",
    r"\{\{ end \}\}": r"{% endif %}",
}
SYSTEM = 'Say "what" it is.\nIn """brief""".'
HISTORY = [("Hi", "Hello, hello!"), ("2024?", "12345")]


def rendered(template: str, messages: list[dict[str, str]], system: str) -> str:
    for action, words in ACTIONS.items():
        template = re.sub(action, words, template, flags=re.DOTALL)
    template = template.replace("else if", "elif")
    made = jinja2.Environment(keep_trailing_newline=True, undefined=jinja2.StrictUndefined).from_string(template)
    return made.render(Messages=messages, System=system)


@pytest.mark.parametrize("system", ["", SYSTEM])
@pytest.mark.parametrize(("tokenizer", "dialect"), [("chatml", "chatml"), ("llama3", "llama3"), ("gpt2", "nemo")])
def test_prompts_are_those_of_the_renderer(tokenizer: str, dialect: str, system: str, tmp_path: Path) -> None:
    base = save_base(tmp_path / "base", TOKENIZERS[tokenizer]())
    policy = new_model("policy", base, STEERLM, dialect, system=system).save(tmp_path / "policy")
    assert run(["export", "gguf", str(tmp_path / "policy"), "--out", str(tmp_path / "my.gguf")]) == 0
    written = (tmp_path / "my.Modelfile").read_text()
    first, template, rest = written.split('"""')
    assert first == "FROM ./my.gguf\nTEMPLATE "
    stops = rest.split()[2::3]
    assert stops == [
        f'"{text}"' for text in dict.fromkeys((policy.renderer.dialect.end, policy.renderer.tokenizer.eos_token))
    ]
    for given in ("", "Rhyme."):
        for turns in range(3):
            messages = [
                {"role": role, "content": text}
                for turn in HISTORY[:turns]
                for role, text in zip(("user", "assistant"), turn, strict=True)
            ]
            asked = [*messages, {"role": "user", "content": "Why is the sea salty?"}]
            assert rendered(template, asked, given) == expected(policy, turns, given or system)


def expected(policy: SteerModel, turns: int, system: str) -> str:
    values = asked_values(policy.schema, {})
    history = [Turn(prompt, answer, values) for prompt, answer in HISTORY[:turns]]
    ids = prompt_ids(policy, "Why is the sea salty?", values, history, system)
    return str(policy.renderer.tokenizer.decode(ids))
