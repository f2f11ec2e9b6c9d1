"""The program as a whole: what it loads, what it says of itself."""

from __future__ import annotations

import subprocess
import sys

import pytest

from steerlm.cli.main import run, shown_default


@pytest.mark.parametrize("module", ["data", "card"])
def test_commands_that_do_without_pytorch(module: str) -> None:
    """It takes seconds to load."""
    code = f"import sys, steerlm.cli.{module}; sys.exit(bool({{'torch', 'transformers'}} & set(sys.modules)))"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize(
    ("default", "shown"),
    [(False, None), ((), None), ([], None), ({}, None), (0, "0"), (0.0, "0.0"), (True, "True"), ("auto", "auto")],
)
def test_defaults_in_help(default: object, shown: str | None) -> None:
    assert shown_default(default) == shown


def test_help_of_lists_and_flags_is_short(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["generate", "--help"]) == 0
    text = capsys.readouterr().out
    assert "--stop" in text
    assert "--empty-stop" not in text
    assert "[default: False]" not in text
    assert "[default: 512]" in " ".join(text.replace("│", " ").split())


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["data", "import"], "KIND requires an argument.\nsee steerlm data import --help"),
        (["trian"], 'Unknown command "trian". Did you mean "train"?'),
        (
            ["data", "import", "foo", "x", "--out", "y"],
            'Invalid value "foo" for KIND. Choose from: "oasst", "helpsteer"',
        ),
        (
            ["generate", "m", "p", "--temprature", "1"],
            "--temprature. Did you mean --temperature?\nsee steerlm generate",
        ),
        (["train", "policy", "--learning-rate", "-1"], "error: --learning-rate: must be more than 0, not -1\nsee "),
        (["train", "policy", "--learning-rate", "fast"], "error: --learning-rate: must be a number, not 'fast'\nsee "),
        (["train", "policy", "--max-steps", "1.5"], "error: --max-steps: must be a whole number, not '1.5'\nsee "),
        (["annotate", "x", "--model", "m", "--out", "o", "--context", "3", "--precision", "x"], "--precision"),
    ],
)
def test_wrong_commands_say_what_is_right(capsys: pytest.CaptureFixture[str], arguments: list[str], says: str) -> None:
    assert run(arguments) == 2
    assert says in capsys.readouterr().err
