"""Reading YAML, where a key given twice is a fault and not the last one's victory."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

YAML_ERRORS = (OSError, UnicodeDecodeError, RecursionError, yaml.YAMLError)
"""What `read_yaml` raises where a file cannot be read."""


def read_yaml(path: str | Path) -> Any:
    """The plain data in a YAML file. Raises one of `YAML_ERRORS` where there is none, or a key is given twice."""
    text = Path(path).read_text(encoding="utf-8")
    try:
        return yaml.load(text, _Loader)
    # Such as of a thirteenth month.
    except (TypeError, ValueError, LookupError, AttributeError, ArithmeticError) as error:
        raise yaml.YAMLError(f"a value is none of its kind: {error}") from error


class _Loader(yaml.SafeLoader):
    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        node = super().compose_mapping_node(anchor)
        seen = set()
        for key, _ in node.value:
            name = (key.tag, key.value) if isinstance(key, yaml.ScalarNode) else None
            if name in seen:
                raise yaml.MarkedYAMLError(problem=f"the key {key.value!r} is given twice", problem_mark=key.start_mark)
            if name:
                seen.add(name)
        return node
