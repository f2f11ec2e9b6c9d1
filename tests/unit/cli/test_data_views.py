"""Text of others on a terminal."""

from __future__ import annotations

import unicodedata

from steerlm.cli.data_views import printable


def test_control_characters_are_made_visible() -> None:
    assert printable("a\tb\n\x1b[0m\x00\x9b\r") == "a\tb\n\\x1b[0m\\x00\\x9b\\r"


def test_marks_of_direction_are_made_visible() -> None:
    """They let a terminal show a text as another one (CVE-2021-42574); the letters themselves stay."""
    classes = {"LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI"}
    marks = [mark for mark in map(chr, range(0x110000)) if unicodedata.bidirectional(mark) in classes]
    marks += [unicodedata.lookup(f"{name} MARK") for name in ("LEFT-TO-RIGHT", "RIGHT-TO-LEFT", "ARABIC LETTER")]
    assert len(marks) == 12
    assert not set(marks) & set(printable(f"שלום{''.join(marks)}"))
    assert printable("שלום\u202e") == "שלום\\u202e"
