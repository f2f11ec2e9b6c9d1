"""The renderer of `steerlm.dialects` once more, as a Jinja chat template that Hugging Face tokenizers carry.

In the sources below `@name` stands for the JSON literal of that string of the dialect.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Literal

from steerlm.attributes import Schema

Task = Literal["policy", "score"]

_CLEAN = """{%- set forbidden = @forbidden -%}
{%- macro clean(text) -%}
{%- if text is not string -%}{{- raise_exception('message content must be a string') -}}{%- endif -%}
{%- set ns = namespace(text=text | trim) -%}
{%- for marker in forbidden -%}
{%- set ns.text = ns.text | replace(marker, marker[:1] ~ ' ' ~ marker[1:]) -%}
{%- endfor -%}
{{- ns.text -}}
{%- endmacro -%}
"""

_LABELS = """{%- set schema = @schema -%}
{%- macro label(values) -%}
{%- set ns = namespace(line='') -%}
{%- for name in values -%}
{%- if name not in (schema | map(attribute=0) | list) -%}
{{- raise_exception('unknown attribute ' ~ name ~ '; this model was trained on labels of ' ~ @names) -}}
{%- endif -%}
{%- endfor -%}
{%- for name, low, high, default in schema -%}
{%- set value = values[name] if name in values else default -%}
{%- if value is not none -%}
{%- set level = [[value, low] | max, high] | min | round | int -%}
{%- set ns.line = ns.line ~ (',' if ns.line else '') ~ name ~ ':' ~ level -%}
{%- endif -%}
{%- endfor -%}
{%- if ns.line -%}{{- @label_open ~ ns.line ~ @label_close -}}{%- endif -%}
{%- endmacro -%}
{%- set asked = attributes if attributes is defined and attributes is not none else {} -%}
"""

_MESSAGES = """{{- @start -}}
{%- set given = messages and messages[0]['role'] == 'system' -%}
{%- set system = clean(messages[0]['content'] if given else @default_system) -%}
{%- if system or @empty_system -%}{{- @system_open ~ system ~ @system_close -}}{%- endif -%}
{%- set ns = namespace(before='') -%}
{%- for message in messages -%}
{%- if message['role'] == 'user' -%}
{{- (@glue if ns.before == 'assistant' else '') ~ @user_open ~ clean(message['content']) ~ @user_close -}}
{%- elif message['role'] == 'assistant' -%}
{{- (@glue if ns.before == 'assistant' else '') ~ @assistant_open -}}
@history_label
{{- clean(message['content']) ~ @response_close -}}
{%- if loop.last -%}{{- @leaf -}}{%- endif -%}
{%- elif not (message['role'] == 'system' and loop.first) -%}
{{- raise_exception('roles must be user or assistant, and system only first; found ' ~ message['role']) -}}
{%- endif -%}
{%- set ns.before = message['role'] -%}
{%- endfor -%}
"""

_PROMPT = """{%- if add_generation_prompt is defined and add_generation_prompt -%}
{%- if ns.before == 'assistant' -%}{{- raise_exception('the last message must come from the user') -}}{%- endif -%}
{{- @assistant_open ~ label(asked) -}}
{%- endif -%}
"""

_HISTORY_LABEL = (
    "{{- label(message['attributes'] "
    "if message['attributes'] is defined and message['attributes'] is not none else asked) -}}"
)


def chat_template(
    dialect: Mapping[str, object], schema: Schema, forbidden: Sequence[str], task: Task, system: str
) -> str:
    """The template of a dialect, given as its fields.

    `forbidden` are the strings that message text must not hold, `system` is the system text of conversations that
    bring none. The policy's template takes `attributes`; that of the attribute model has no labels and ends with the
    score mark.
    """
    literals = {
        **dialect,
        "forbidden": list(forbidden),
        "names": ", ".join(schema.names),
        "schema": [[item.name, item.low, item.high, item.default] for item in schema],
        "default_system": system,
        "leaf": dialect["end"] if task == "policy" else dialect["score"],
    }
    if task == "policy":
        source = _CLEAN + _LABELS + _MESSAGES.replace("@history_label", _HISTORY_LABEL) + _PROMPT
    else:
        source = _CLEAN + _MESSAGES.replace("@history_label\n", "")
    # A JSON literal is a Jinja literal too; one pass, so that nothing put in is looked at again.
    return re.sub(r"@([a-z_]+)", lambda match: json.dumps(literals[match[1]], ensure_ascii=False), source)
