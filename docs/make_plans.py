"""Put what `steerlm plan` says into docs/scaling.md, or with --check fail where it says something else now."""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import shlex
import sys
from pathlib import Path

from steerlm.cli.main import run as run_command
from steerlm.cli.plan import shown_hours

TARGET = Path(__file__).parent / "scaling.md"
# Each recipe on one node of 8 GPUs or less, on 4 nodes and on the 16 of the paper; 70B also on 8.
PLANS = (
    "llama2-7b-policy --gpus 8",
    "llama2-7b-policy --gpus 32 --tensor-parallel 8",
    "llama2-7b-policy --gpus 128 --tensor-parallel 8",
    "llama2-7b-attribute-model --gpus 8",
    "llama2-7b-attribute-model --gpus 32 --tensor-parallel 8",
    "llama2-7b-attribute-model --gpus 128 --tensor-parallel 8",
    "llama2-13b-policy --gpus 8",
    "llama2-13b-policy --gpus 32 --tensor-parallel 8",
    "llama2-13b-policy --gpus 128 --tensor-parallel 8",
    "llama2-13b-attribute-model --gpus 8",
    "llama2-13b-attribute-model --gpus 32 --tensor-parallel 8",
    "llama2-13b-attribute-model --gpus 128 --tensor-parallel 8",
    "llama2-70b-policy --gpus 8",
    "llama2-70b-policy --gpus 32",
    "llama2-70b-policy --gpus 64 --no-gradient-checkpointing",
    "llama2-70b-policy --gpus 128 --tensor-parallel 8",
    "llama2-70b-adapter",
    "llama2-70b-adapter-8gpus --gpus 8",
)
_SHOWN = re.compile(r"^```text\n\$ (steerlm plan .*)\n(?:.*\n)*?```$", re.MULTILINE)
_TABLE = re.compile(r"^<!-- plans -->\n(?:.*\n)*?<!-- end of plans -->$", re.MULTILINE)


def run(command: str) -> str:
    """What a command prints. All are run by this process, which need not measure anything twice."""
    stream = io.StringIO()
    with contextlib.redirect_stdout(stream):
        code = run_command(shlex.split(command)[1:])
    if code:
        raise SystemExit(f"{command}: exit code {code}")
    return stream.getvalue()


def shown(match: re.Match[str]) -> str:
    """A command with its output."""
    lines = [line.rstrip() for line in run(match[1]).splitlines()]
    return "\n".join(["```text", f"$ {match[1]}", *lines, "```"])


def table() -> str:
    """A line for each of our recipes' plans."""
    lines = [
        "<!-- plans -->",
        "| `steerlm plan` | memory of a GPU | tokens/s | ranks busy | hours |",
        "|---|---|---|---|---|",
    ]
    for words in PLANS:
        plan = json.loads(run(f"steerlm plan {words} --json"))
        speed = plan["speed"]
        verdict = "" if plan["fits"] else ", does not fit"
        figures = [
            f"`{words}`",
            f"{plan['total_gib']:.1f} GiB{verdict}",
            f"{speed['tokens_per_second']:,.0f}",
            f"{speed['busy']:.0%}",
            shown_hours(speed["hours"]),
        ]
        lines.append(f"| {' | '.join(figures)} |")
    return "\n".join([*lines, "<!-- end of plans -->"])


def main() -> int:
    """Write the page, or compare it."""
    os.environ.update(COLUMNS="100", TERM="dumb")
    before = TARGET.read_text(encoding="utf-8")
    made = _TABLE.sub(lambda _: table(), _SHOWN.sub(shown, before))
    if "--check" not in sys.argv[1:]:
        TARGET.write_text(made, encoding="utf-8")
        return 0
    if made == before:
        return 0
    print("docs/scaling.md is not what steerlm plan says; run `make docs`", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())
