"""Streaming text: whole characters, no trace of a stop string, no trailing white space."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from steerlm.engines.text import TextStream
from tiny import TOKENIZERS

TOKENIZER = TOKENIZERS["chatml"]()
TEXTS = st.text(alphabet="abc XY\n<>🙂é", max_size=60)


def streamed(text: str, stop: tuple[str, ...], trim: bool = True) -> tuple[list[str], bool]:
    stream = TextStream(TOKENIZER, stop, trim)
    parts = []
    for token in TOKENIZER(text, add_special_tokens=False)["input_ids"]:
        parts.append(stream.push(token))
        if stream.stopped:
            return parts, True
    return [*parts, stream.finish()], False


@given(TEXTS)
def test_without_stops_the_text_comes_whole(text: str) -> None:
    parts, stopped = streamed(text, ())
    assert "".join(parts) == text.rstrip()
    assert not stopped
    assert "\ufffd" not in "".join(parts)


@given(TEXTS, st.sampled_from(["", "\x0b", " \n"]))
def test_white_space_at_the_end_can_be_kept(text: str, end: str) -> None:
    parts, _ = streamed(text + end, (), trim=False)
    assert "".join(parts) == text + end
    parts, stopped = streamed(f"{text}{end}|more", ("|",), trim=False)
    assert ("".join(parts), stopped) == (text + end, True)


@given(TEXTS, st.lists(st.text(alphabet="abc X\n<", min_size=1, max_size=4), min_size=1, max_size=3))
def test_stops_cut_at_their_first_place(text: str, stops: list[str]) -> None:
    parts, stopped = streamed(text, tuple(stops))
    shown = "".join(parts)
    places = [text.find(stop) for stop in stops if stop in text]
    assert stopped == bool(places)
    assert not any(stop in shown for stop in stops)
    # The stop that is complete first wins; nothing from its beginning on is shown.
    assert text.rstrip().startswith(shown) or text.startswith(shown)
    if not places:
        assert shown == text.rstrip()


@given(st.text(alphabet="ab", min_size=1, max_size=20))
def test_a_half_seen_stop_is_given_back_at_the_end(text: str) -> None:
    parts, _ = streamed(text + "<", ("<|",))
    assert "".join(parts) == text + "<"


def test_long_texts_are_exact_too() -> None:
    text = "naïve café 🙂 and some words, " * 40
    parts, _ = streamed(text, ("never",))
    assert "".join(parts) == text.rstrip()
    assert sum(bool(part) for part in parts) > 40
