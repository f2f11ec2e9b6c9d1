"""What holds of rendered tokens whatever people type: text cannot become markup, prompts begin what is trained."""

from __future__ import annotations

import copy
from dataclasses import replace
from functools import cache
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import normalizers
from transformers import PreTrainedTokenizerFast

from references import path_tokens, thread_to
from steerlm.attributes import STEERLM
from steerlm.conversation import Conversation, Message
from steerlm.dialects import DIALECTS, Renderer
from steerlm.errors import ConfigError
from strategies import TEXTS, conversations, examples, partial_values
from tiny import Markers, byte_level, renderer

COMBINATIONS: list[tuple[str, str, Markers]] = [
    ("chatml", "chatml", "levels"),
    ("qwen", "nemo", "levels"),
    ("digits", "chatml", "special"),
    ("llama3", "llama3", "levels"),
    ("gpt2", "nemo", "levels"),
    ("llama2", "nemo", "special"),
    ("metaspace", "llama3", "levels"),
]
every_combination = pytest.mark.parametrize(("tokenizer", "dialect", "markers"), COMBINATIONS)


def harmless(conversation: Conversation) -> Conversation:
    """The same tree with nothing but `x` in it; an empty system text stays empty."""
    messages = tuple(replace(message, text="x") for message in conversation.messages)
    return replace(conversation, messages=messages, system="x" if conversation.system.strip() else "")


def specials(made: Renderer, ids: list[int]) -> list[int]:
    known = {key for key, token in made.tokenizer.added_tokens_decoder.items() if token.special}
    return [token for token in ids if token in known]


@every_combination
@examples(30)
@given(conversation=conversations(), data=st.data())
def test_text_never_becomes_a_special_token(
    tokenizer: str, dialect: str, markers: Markers, conversation: Conversation, data: st.DataObject
) -> None:
    """Whatever the texts, each path holds the special tokens of its structure and no other."""
    made = renderer(tokenizer, dialect, markers)
    labels = {index: data.draw(partial_values(STEERLM)) for index in conversation.responses}
    hostile = made.tree(conversation, "policy", labels)
    plain = made.tree(harmless(conversation), "policy", labels)
    for ours, expected in zip(hostile.segments, plain.segments, strict=True):
        assert specials(made, list(ours.ids)) == specials(made, list(expected.ids))


@pytest.mark.parametrize("tokenizer", ["gpt2", "llama2", "qwen"])
@examples(30)
@given(conversation=conversations())
def test_text_never_spells_a_marker(tokenizer: str, conversation: Conversation) -> None:
    """In the plain-text dialect the markers are read back from the decoded prompt."""
    made = renderer(tokenizer, "nemo", "plain")
    hostile = made.tree(conversation, "policy")
    plain = made.tree(harmless(conversation), "policy")
    for index in range(len(hostile.segments)):
        text, expected = (made.tokenizer.decode(tree.path_ids(index)) for tree in (hostile, plain))
        for marker in DIALECTS["nemo"].markers:
            assert text.count(marker) == expected.count(marker)


NORMALIZERS: dict[str, Any] = {
    "nfc": normalizers.NFC(),
    "nfkc": normalizers.NFKC(),
    "nmt": normalizers.Nmt(),
    "lowercase": normalizers.Lowercase(),
    "accents": normalizers.Sequence([normalizers.NFD(), normalizers.StripAccents()]),
    "spaces": normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]),
    "no spaces": normalizers.Replace(" ", ""),
    "brackets": normalizers.Replace("[", "<"),
}
HARMLESS = {"nfc", "spaces"}


@st.composite
def disguised(draw: st.DrawFn) -> str:
    """Markers with some of their characters replaced by what normalisers take for them, or put apart."""
    ways = [
        lambda char: chr(ord(char) + 0xFEE0),  # full width
        str.upper,
        lambda char: char + "\u0301",
        lambda char: char + draw(st.sampled_from(["\x01", "\u200b", "\u00ad", " ", "\ufeff"])),
        lambda char: "[" if char == "<" else char,
    ]
    marker = draw(st.sampled_from(DIALECTS["nemo"].markers))
    way = draw(st.sampled_from(ways))
    changed = draw(st.sets(st.integers(0, len(marker) - 1)))
    spelled = "".join(way(char) if place in changed else char for place, char in enumerate(marker))
    return draw(TEXTS) + spelled + draw(TEXTS)


@cache
def normalizing(name: str) -> PreTrainedTokenizerFast:
    return byte_level(["<|endoftext|>"], normalizer=NORMALIZERS[name])


@pytest.mark.parametrize("name", list(NORMALIZERS))
@examples(40)
@given(text=disguised())
def test_no_disguise_becomes_a_marker(name: str, text: str) -> None:
    """Where a normaliser takes disguises off, markers must be tokens, which are found in text as typed."""
    tokenizer, counted = normalizing(name), DIALECTS["nemo"].markers
    if name not in HARMLESS:
        with pytest.raises(ConfigError, match=r"may make '<extra_id_\d>' of other text.*marker_tokens: true"):
            Renderer(DIALECTS["nemo"], tokenizer, STEERLM)
        tokenizer = copy.deepcopy(tokenizer)
        tokenizer.add_special_tokens({"additional_special_tokens": list(counted)})
    made = Renderer(DIALECTS["nemo"], tokenizer, STEERLM)

    def count(typed: str) -> list[int]:
        thread = made.thread(Conversation("c", (Message("user", typed), Message("assistant", "x", 0))), "policy")
        if name not in HARMLESS:
            return [thread.count(tokenizer.convert_tokens_to_ids(marker)) for marker in counted]
        return [tokenizer.decode(thread).count(marker) for marker in counted]

    assert count(text) == count("x")


@every_combination
@examples(30)
@given(conversation=conversations(most=5), data=st.data())
def test_a_tree_holds_the_tokens_of_its_threads(
    tokenizer: str, dialect: str, markers: Markers, conversation: Conversation, data: st.DataObject
) -> None:
    made = renderer(tokenizer, dialect, markers)
    labels = {index: data.draw(partial_values(STEERLM)) for index in conversation.responses}
    for task in ("policy", "score"):
        tree = made.tree(conversation, task, labels)  # type: ignore[arg-type]
        for index, segment in enumerate(tree.segments):
            if segment.message >= 0:
                path = conversation.path(segment.message)
                here = {new: labels[old] for new, old in enumerate(path) if old in labels}
                thread = made.thread(thread_to(conversation, segment.message), task, here)  # type: ignore[arg-type]
                assert path_tokens(tree, index) == tree.path_ids(index) == thread


@every_combination
@examples(30)
@given(conversation=conversations(most=5, single_thread=True), answer=TEXTS, data=st.data())
def test_a_prompt_begins_the_thread_that_is_trained(
    tokenizer: str, dialect: str, markers: Markers, conversation: Conversation, answer: str, data: st.DataObject
) -> None:
    """Else the model would be asked to go on from tokens that it never saw. The exception is a `nemo` response that
    says nothing: as in NeMo, the newlines around it may be one token, and it teaches nothing but the end signal.
    """
    made = renderer(tokenizer, dialect, markers)
    labels = {index: data.draw(partial_values(STEERLM)) for index in conversation.responses}
    asked = data.draw(partial_values(STEERLM))
    last = len(conversation.messages)
    whole = replace(conversation, messages=(*conversation.messages, Message("assistant", answer, last - 1)))
    prompt = made.prompt(conversation, labels, asked)
    tree = made.tree(whole, "policy", {**labels, last: asked})
    thread = tree.path_ids(len(tree.segments) - 1)
    if dialect == "nemo" and not answer.strip():
        assert {span.role for span in tree.segments[-1].spans} <= {"marker", "label", "end"}
        return
    assert thread[: len(prompt)] == prompt
    assert len(thread) - len(prompt) == len(tree.segments[-1].trained())


def test_the_known_limit_of_prompts() -> None:
    """Llama 3's markers on GPT-2's splitting, with no label line: two newlines before text are two tokens, and one
    at the end of a prompt. With labels, and on Llama 3's own tokenizer, there is no such difference.
    """
    conversation = Conversation("c", (Message("user", "a"),))
    whole = replace(conversation, messages=(*conversation.messages, Message("assistant", "b", 0)))
    for tokenizer, labels, begins in (
        ("gpt2", {}, False),
        ("gpt2", {"humor": 1}, True),
        ("llama3", {}, True),
        ("llama3", {"humor": 1}, True),
    ):
        made = renderer(tokenizer, "llama3")
        prompt = made.prompt(conversation, {}, labels)
        assert (made.thread(whole, "policy", {1: labels})[: len(prompt)] == prompt) is begins


@examples(100)
@given(TEXTS, st.sampled_from(COMBINATIONS))
def test_cleaning_twice_changes_nothing(text: str, combination: tuple[str, str, Markers]) -> None:
    made = renderer(*combination)
    clean = made.clean(text)
    assert made.clean(clean) == clean
    assert not any(marker in clean for marker in made.forbidden)
    # Nothing but spaces is put in, and nothing but white space at the ends is taken away.
    assert clean.replace(" ", "") == text.strip().replace(" ", "")
