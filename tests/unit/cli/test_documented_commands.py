"""Every command line that our documents show is one that the program takes."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import cyclopts
import pytest

from steerlm.cli.main import build_app
from steerlm.recipes import find_recipe

ROOT = Path(__file__).parents[3]
FILES = [ROOT / "README.md", ROOT / "DESIGN.md", *sorted((ROOT / "docs").glob("[!c]*.md")), ROOT / "Makefile"]
FILES += sorted((ROOT / "src" / "steerlm" / "recipes").glob("*.yaml"))


def shown_commands(text: str) -> list[str]:
    """The lines of a document that begin with `steerlm`, be it in a code block, a comment or a recipe of make, or that
    launch it as a module.
    """
    whole = text.replace("\\\n", " ")
    lines = re.finditer(r"^(?:#|\t\$\(BIN\)/|.* -m)? *(steerlm [a-z][^'\n]*)'?$", whole, re.MULTILINE)
    return [match[1] for match in lines]


COMMANDS = [(file.name, command) for file in FILES for command in shown_commands(file.read_text(encoding="utf-8"))]


@pytest.mark.parametrize(("file", "command"), COMMANDS)
def test_a_command_is_understood(file: str, command: str) -> None:
    words = shlex.split(command, comments=True)[1:]
    _, bound, ignored = build_app().parse_args(words, exit_on_error=False, print_error=False)
    assert not ignored
    if recipe := bound.arguments.get("recipe"):
        assert find_recipe(recipe).is_file()


def test_the_tour_is_among_them() -> None:
    shown = {tuple(shlex.split(command)[1:2]) for file, command in COMMANDS if file == "README.md"}
    assert shown >= {("chat",), ("generate",), ("data",), ("train",), ("annotate",)}


@pytest.mark.parametrize("wrong", ["steerlm trian policy", "steerlm chat runs/x --temprature 1", "steerlm generate m"])
def test_a_wrong_command_would_be_noticed(wrong: str) -> None:
    with pytest.raises(cyclopts.CycloptsError):
        build_app().parse_args(shlex.split(wrong)[1:], exit_on_error=False, print_error=False)


def test_make_targets_are_there() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    documents = [path.read_text(encoding="utf-8") for path in (ROOT / "README.md", ROOT / "docs" / "results.md")]
    named = {name for text in documents for name in re.findall(r"(?:^|`)make ([a-z-]+)", text, re.MULTILINE)}
    assert {"quickstart", "test"} <= named <= targets
