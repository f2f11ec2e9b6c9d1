"""The saved Jinja template yields the renderer's tokens, whatever people type, in every dialect on every tokenizer."""

from __future__ import annotations

from typing import Any

import jinja2
import pytest
from hypothesis import given
from hypothesis import strategies as st

from steerlm.attributes import STEERLM, Schema
from steerlm.chat_template import Task
from steerlm.conversation import Conversation, Message
from steerlm.dialects import Renderer
from strategies import TEXTS, examples, partial_values, schemas
from tiny import TOKENIZERS, Markers, renderer

COMBINATIONS: list[tuple[str, str, Markers]] = [
    ("chatml", "chatml", "special"),
    ("chatml", "nemo", "levels"),
    ("qwen", "chatml", "levels"),
    ("qwen", "nemo", "special"),
    ("digits", "chatml", "levels"),
    ("digits", "nemo", "special"),
    ("digits", "llama3", "levels"),
    ("llama3", "llama3", "special"),
    ("llama3", "llama3", "levels"),
    ("llama3", "nemo", "plain"),
    ("gpt2", "nemo", "plain"),
    ("gpt2", "nemo", "levels"),
    ("gpt2", "chatml", "special"),
    ("gpt2", "llama3", "special"),
    ("llama2", "nemo", "plain"),
    ("llama2", "nemo", "levels"),
    ("llama2", "chatml", "special"),
    ("llama2", "llama3", "levels"),
    ("metaspace", "nemo", "plain"),
    ("metaspace", "chatml", "levels"),
]


def apply(made: Renderer, task: Task, messages: list[dict[str, Any]], **options: Any) -> list[int]:
    """What bare transformers makes of the messages."""
    ids: list[int] = made.tokenizer.apply_chat_template(
        messages, chat_template=made.chat_template(task), tokenize=True, return_dict=False, **options
    )
    return ids


def as_messages(conversation: Conversation, labels: dict[int, Any] | None = None) -> list[dict[str, Any]]:
    """OpenAI's form; `labels[i]` go to assistant message `i` with all other attributes switched off."""
    messages = [{"role": "system", "content": conversation.system}] if conversation.system else []
    for index, message in enumerate(conversation.messages):
        item: dict[str, Any] = {"role": message.role, "content": message.text}
        if message.role == "assistant" and labels is not None:
            item["attributes"] = {**dict.fromkeys(STEERLM.names), **labels.get(index, {})}
        messages.append(item)
    return messages


@st.composite
def threads(draw: st.DrawFn, ends_with: str) -> Conversation:
    """A thread whose texts are hostile."""
    messages: list[Message] = []
    count = 2 * draw(st.integers(1, 2)) - (ends_with == "user")
    for index in range(count):
        role = "assistant" if index % 2 else "user"
        messages.append(Message(role, draw(TEXTS), index - 1 if index else None))  # type: ignore[arg-type]
    return Conversation("c", tuple(messages), draw(st.just("") | TEXTS))


@pytest.mark.parametrize(("tokenizer", "dialect", "markers"), COMBINATIONS)
@examples(25)
@given(data=st.data())
def test_whole_threads(tokenizer: str, dialect: str, markers: Markers, data: st.DataObject) -> None:
    made = renderer(tokenizer, dialect, markers)
    conversation = data.draw(threads("assistant"))
    labels = {index: data.draw(partial_values(STEERLM)) for index in conversation.responses}
    assert apply(made, "policy", as_messages(conversation, labels)) == made.thread(conversation, "policy", labels)
    assert apply(made, "score", as_messages(conversation)) == made.thread(conversation, "score")


@pytest.mark.parametrize(("tokenizer", "dialect", "markers"), COMBINATIONS)
@examples(25)
@given(data=st.data())
def test_prompts(tokenizer: str, dialect: str, markers: Markers, data: st.DataObject) -> None:
    made = renderer(tokenizer, dialect, markers)
    conversation = data.draw(threads("user"))
    labels = {index: data.draw(partial_values(STEERLM)) for index in conversation.responses}
    asked = data.draw(partial_values(STEERLM))
    made_by_template = apply(
        made,
        "policy",
        as_messages(conversation, labels),
        add_generation_prompt=True,
        attributes={**dict.fromkeys(STEERLM.names), **asked},
    )
    assert made_by_template == made.prompt(conversation, labels, asked)


@pytest.mark.parametrize("labels", [{}, {1: {"humor": 2.0}}])
@pytest.mark.parametrize(("tokenizer", "dialect", "markers"), COMBINATIONS)
def test_an_empty_response(tokenizer: str, dialect: str, markers: Markers, labels: dict[int, Any]) -> None:
    """In nemo the newline before an empty response and the one after it are one token on many tokenizers."""
    made = renderer(tokenizer, dialect, markers)
    ends = Conversation("c", (Message("user", "a"), Message("assistant", " \n", 0)))
    goes_on = Conversation("c", (*ends.messages, Message("user", "b", 1)))
    assert apply(made, "policy", as_messages(ends, labels)) == made.thread(ends, "policy", labels)
    assert apply(made, "score", as_messages(ends)) == made.thread(ends, "score")
    asked = {"attributes": dict.fromkeys(STEERLM.names), "add_generation_prompt": True}
    assert apply(made, "policy", as_messages(goes_on, labels), **asked) == made.prompt(goes_on, labels, None)


MADE = renderer("chatml", "chatml")
ASK = [{"role": "user", "content": "Hi"}]


def prompt(attributes: dict[str, float] | None) -> list[int]:
    return MADE.prompt(Conversation("c", (Message("user", "Hi"),)), {}, attributes)


def test_attributes_that_are_not_given_take_their_defaults() -> None:
    expected = prompt({**STEERLM.defaults, "verbosity": 1, "humor": 4})
    assert apply(MADE, "policy", ASK, add_generation_prompt=True, attributes={"humor": 4, "verbosity": 1}) == expected
    for nothing in ({}, {"attributes": None}, {"attributes": {}}):
        assert apply(MADE, "policy", ASK, add_generation_prompt=True, **nothing) == prompt(STEERLM.defaults)


def test_an_attribute_set_to_none_is_left_out() -> None:
    rest = {name: value for name, value in STEERLM.defaults.items() if name != "quality"}
    assert apply(MADE, "policy", ASK, add_generation_prompt=True, attributes={"quality": None}) == prompt(rest)
    none = dict.fromkeys(STEERLM.names)
    assert apply(MADE, "policy", ASK, add_generation_prompt=True, attributes=none) == prompt(None)


def test_history_takes_its_own_attributes_or_else_those_of_the_request() -> None:
    conversation = Conversation("c", (Message("user", "a"), Message("assistant", "b", 0), Message("user", "c", 1)))
    messages = as_messages(conversation)
    asked = {**STEERLM.defaults, "humor": 3}
    options: dict[str, Any] = {"add_generation_prompt": True, "attributes": {"humor": 3}}
    for nothing in ({}, {"attributes": None}):
        messages[1] = {"role": "assistant", "content": "b", **nothing}
        assert apply(MADE, "policy", messages, **options) == MADE.prompt(conversation, {1: asked}, asked)
    messages[1]["attributes"] = {"humor": 1}
    own = {**STEERLM.defaults, "humor": 1}
    assert apply(MADE, "policy", messages, **options) == MADE.prompt(conversation, {1: own}, asked)


@examples(60)
@given(data=st.data(), schema=schemas())
def test_levels_are_clamped_and_rounded_as_label_lines_are(data: st.DataObject, schema: Schema) -> None:
    made = Renderer(MADE.dialect, MADE.tokenizer, schema)
    number = st.integers(-50, 50).map(lambda twice: twice / 2) | st.integers(-9, 30) | st.floats(-1e9, 1e9)
    values = {name: data.draw(number) for name in data.draw(st.lists(st.sampled_from(schema.names), unique=True))}
    ids = apply(made, "policy", ASK, add_generation_prompt=True, attributes={**dict.fromkeys(schema.names), **values})
    assert ids == made.prompt(Conversation("c", (Message("user", "Hi"),)), {}, values)


@pytest.mark.parametrize("task", ["policy", "score"])
@pytest.mark.parametrize(
    ("messages", "says"),
    [
        ([{"role": "tool", "content": "x"}], "roles must be user or assistant.*found tool"),
        ([{"role": "user", "content": "x"}, {"role": "system", "content": "y"}], "system only first; found system"),
        ([{"role": "System", "content": "x"}], "found System"),
        ([{"role": "user", "content": None}], "message content must be a string"),
        ([{"role": "user", "content": ["x"]}], "message content must be a string"),
        ([{"role": "user"}], "message content must be a string"),
        ([{"role": "system", "content": 5}, {"role": "user", "content": "x"}], "message content must be a string"),
    ],
)
def test_messages_that_no_prompt_can_be_made_of(task: Task, messages: list[dict[str, Any]], says: str) -> None:
    with pytest.raises(jinja2.TemplateError, match=says):
        apply(MADE, task, messages)


def test_unknown_attributes() -> None:
    with pytest.raises(jinja2.TemplateError, match="unknown attribute wit"):
        apply(MADE, "policy", ASK, add_generation_prompt=True, attributes={"wit": 3})
    history = [*ASK, {"role": "assistant", "content": "b", "attributes": {"wit": 3}}]
    with pytest.raises(jinja2.TemplateError, match="unknown attribute wit"):
        apply(MADE, "policy", history)


def test_only_users_are_answered() -> None:
    with pytest.raises(jinja2.TemplateError, match="the last message must come from the user"):
        apply(MADE, "policy", [*ASK, {"role": "assistant", "content": "b"}], add_generation_prompt=True)


def test_the_score_template_takes_a_generation_prompt_flag_without_harm() -> None:
    """Some programs always set it."""
    messages = [*ASK, {"role": "assistant", "content": "b"}]
    assert apply(MADE, "score", messages, add_generation_prompt=True) == apply(MADE, "score", messages)


def test_special_tokens_that_look_like_template_code() -> None:
    """They stand in the template as literals and must come out of it as they went in."""
    tokenizer = TOKENIZERS["chatml"]()
    hostile = [
        "{%- raw -%}",
        "{{ x }}",
        '"quote"',
        "'single'",
        "back\\slash",
        "@start",
        "@forbidden",
        "new\nline",
        "☃☃",
    ]
    tokenizer.add_special_tokens({"additional_special_tokens": hostile}, replace_extra_special_tokens=False)
    made = Renderer(MADE.dialect, tokenizer, STEERLM)
    conversation = Conversation("c", (Message("user", " ".join(hostile)), Message("assistant", "".join(hostile), 0)))
    assert apply(made, "policy", as_messages(conversation, {})) == made.thread(conversation, "policy")
    ids = made.thread(conversation, "policy")
    assert not set(ids) & set(tokenizer.convert_tokens_to_ids(hostile))
