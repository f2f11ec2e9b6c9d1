"""Write docs/cli.md from the commands' own help, or with --check fail where it has drifted."""

from __future__ import annotations

import io
import sys
from pathlib import Path

from cyclopts import App
from rich.console import Console

from steerlm.cli.main import build_app

TARGET = Path(__file__).parent / "cli.md"


def help_pages(app: App, words: tuple[str, ...] = ()) -> list[tuple[str, str]]:
    """(command, help text) of an app and of everything below it, in order of registration."""
    stream = io.StringIO()
    console = Console(file=stream, width=110, color_system=None, force_terminal=False, legacy_windows=False)
    app.help_print(list(words), console=console)
    pages = [(" ".join(("steerlm", *words)), stream.getvalue())]
    below = app
    for word in words:
        below = below[word]
    for name in below:
        if not name.startswith("-"):
            pages += help_pages(app, (*words, name))
    return pages


def document() -> str:
    """The whole page."""
    parts = ["# Commands", "", "Made from the commands' own help by `make docs`.", ""]
    # The overview shows each command's one line, the other pages all that the commands say of themselves.
    overview = help_pages(build_app(summaries=True))[:1]
    for command, text in [*overview, *help_pages(build_app())[1:]]:
        lines = [line.rstrip() for line in text.strip("\n").splitlines()]
        parts += [f"## `{command}`", "", "```text", *lines, "```", ""]
    return "\n".join(parts).rstrip() + "\n"


def main() -> int:
    """Write the page, or compare it."""
    if "--check" not in sys.argv[1:]:
        TARGET.write_text(document(), encoding="utf-8")
        return 0
    if TARGET.is_file() and TARGET.read_text(encoding="utf-8") == document():
        return 0
    print("docs/cli.md is not what the commands say; run `make docs`", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())
