"""How Ollama prompts a policy, which runs no Jinja templates: a Modelfile, with the chat template in Go's language."""

from __future__ import annotations

import json
from pathlib import Path

from steerlm.files import write_text
from steerlm.models.prompting import Prompting, load_prompting
from steerlm.steering import asked_values


def write_modelfile(directory: Path, gguf: Path) -> Path:
    """Write a Modelfile for the GGUF file made of the policy in `directory`, beside it; returns its path.

    Answers are those to the default setting; the label line stands at the beginning of the template, to be changed.
    Raises `ModelError` where there is no policy.
    """
    prompting = load_prompting(directory)
    renderer = prompting.renderer
    stops = dict.fromkeys(text for text in (renderer.dialect.end, renderer.tokenizer.eos_token) if text)
    lines = [
        f"FROM ./{gguf.name}",
        f'TEMPLATE """{_template(prompting)}"""',
        *(f'PARAMETER stop "{stop}"' for stop in stops),
    ]
    out = gguf.with_suffix(".Modelfile")
    write_text(out, "\n".join(lines) + "\n")
    return out


def _template(prompting: Prompting) -> str:
    d = prompting.renderer.dialect
    label = prompting.renderer.label_text(asked_values(prompting.schema, {}))
    system = f"{d.system_open}{{{{ $system }}}}{d.system_close}"
    if not d.empty_system:
        system = f"{{{{ if $system }}}}{system}{{{{ end }}}}"
    head = f"{d.assistant_open}{{{{ $label }}}}"
    return (
        f"{{{{ $label := {_literal(label)} }}}}{{{{ $system := or .System {_literal(prompting.info.system)} }}}}"
        f"{d.start}{system}"
        '{{ range .Messages }}{{ if eq .Role "user" }}'
        f"{d.user_open}{{{{ .Content }}}}{d.user_close}"
        '{{ else if eq .Role "assistant" }}'
        f"{head}{{{{ .Content }}}}{d.response_close}{d.glue}"
        f"{{{{ end }}}}{{{{ end }}}}{head}"
    )


def _literal(text: str) -> str:
    """Text as a string of Go's, in which no three quotes, that end a template, follow each other."""
    return json.dumps(text, ensure_ascii=False)
