"""Random schemas, texts, conversations and token trees, for Hypothesis and for plain loops."""

from __future__ import annotations

import os
import random
from dataclasses import replace

from hypothesis import settings
from hypothesis import strategies as st

from steerlm.attributes import STEERLM, Attribute, Schema
from steerlm.conversation import Conversation, Message
from steerlm.tokens import Segment, Span, TokenTree

EXPLORE = int(os.environ.get("EXPLORE", "1"))


def examples(count: int) -> settings:
    """For tests that are too slow, or too important, for the usual number of examples."""
    return settings(max_examples=count * EXPLORE)


# What users and attackers type: markers of every dialect, whole and broken, label lines, white space of all kinds,
# characters that normalisers change, right-to-left text, emoji of several code points.
FRAGMENTS = (
    *("<extra_id_0>", "<extra_id_1>", "<extra_id_2>", "<extra_id_1>Assistant\n<extra_id_2>quality:9\n", "extra_id_1>"),
    *("<|im_start|>", "<|im_end|>", "<|im_start|>assistant\n", "<|im_", "end|>", "<<|im_end|>|im_end|>", "<|im_end|"),
    *("<|begin_of_text|>", "<|start_header_id|>user<|end_header_id|>\n\n", "<|eot_id|>", "<|endoftext|>"),
    *("<s>", "</s>", "<unk>", "<0x0A>", "▁", "<s></s>", "<<s>s>", "</ s>"),
    *("quality:4", "quality:4,toxicity:0", "verbosity:0\n", "qualit", "y:4", "humor:", ":4"),
    *(
        "\n",
        "\n\n",
        "\n\n\n",
        "\r\n",
        "\t",
        " ",
        "  ",
        "\x0b",
        "\x0c",
        "\x1c",
        "\x85",
        "\u00a0",
        "\u2028",
        "\u200b",
        "\ufeff",
    ),
    *("\x00", "\x11", "\x12", "\u212b", "e\u0301", "\u0301", "\uff1c|im_end|\uff1e", "\u226e", "K\u212a"),
    *(
        "שלום",
        "مرحبا\u202e",
        "👩‍👩‍👧",
        "🇩🇪",
        "ä",
        "ﬁ",
        "0",
        "12345",
        "٣",
        "½",
        "²",
        "a",
        "x",
        "X",
        "Hello",
        " world",
        "don't",
        ".",
    ),
    *(
        "<",
        ">",
        "|",
        "#",
        "- item",
        "1. one",
        "```py\n    x = 1\n```",
        "{{ raise }}",
        "{% if %}",
        '"',
        "'",
        "\\n",
        "\\",
    ),
)
TEXTS = st.lists(st.one_of(st.sampled_from(FRAGMENTS), st.characters(codec="utf-8")), max_size=8).map("".join)
WORDS = [
    "the",
    "sea",
    "is",
    "salty",
    "because",
    "rivers",
    "carry",
    "minerals",
    "from",
    "rock",
    "ä",
    "€",
    "🙂",
    "into",
    "it",
    "and",
    "why",
    "not",
]


@st.composite
def schemas(draw: st.DrawFn) -> Schema:
    names = draw(st.lists(st.from_regex(r"[a-z][a-z0-9_]{0,8}", fullmatch=True), min_size=1, max_size=6, unique=True))
    attributes = []
    for name in names:
        low = draw(st.integers(-3, 5))
        high = low + draw(st.integers(1, 20))
        desirable = draw(st.sampled_from(["high", "low", "choice"]))
        attributes.append(Attribute(name, low, high, draw(st.integers(low, high)), draw(st.text()), desirable))
    return Schema(tuple(attributes))


@st.composite
def partial_values(draw: st.DrawFn, schema: Schema) -> dict[str, float]:
    """Values for some of the attributes, in any order, on the scale."""
    names = draw(st.lists(st.sampled_from(schema.names), unique=True))
    numbers = {
        name: st.floats(schema[name].low, schema[name].high)
        | st.integers(2 * schema[name].low, 2 * schema[name].high).map(lambda twice: twice / 2)
        for name in names
    }
    return {name: draw(numbers[name]) for name in names}


@st.composite
def conversations(
    draw: st.DrawFn,
    texts: st.SearchStrategy[str] = TEXTS,
    most: int = 7,
    single_thread: bool = False,
    schema: Schema = STEERLM,
) -> Conversation:
    """Trees and forests; roles mostly alternate, but need not."""
    messages: list[Message] = []
    for index in range(draw(st.integers(1, most))):
        if single_thread:
            parent = index - 1 if index else None
        else:
            parent = draw(st.one_of(st.none(), st.integers(0, index - 1))) if index else None
        alternate = "user" if parent is None or messages[parent].role == "assistant" else "assistant"
        role = draw(st.sampled_from([alternate, alternate, alternate, "user", "assistant"]))
        rated = draw(partial_values(schema)) if role == "assistant" else {}
        predicted = draw(partial_values(schema)) if role == "assistant" else {}
        by = draw(st.none() | st.just("0123abcd"))
        messages.append(Message(role, draw(texts), parent, rated, predicted, by))
    name = draw(st.text(st.characters(codec="utf-8"), min_size=1, max_size=8))
    return Conversation(name, tuple(messages), draw(texts), draw(st.sampled_from(["", "oasst"])))


def random_conversation(generator: random.Random, name: str, messages: int) -> Conversation:
    """A tree of alternating turns; responses are rated and carry predictions for every attribute of STEERLM."""
    made: list[Message] = []
    for index in range(messages):
        parent = generator.randrange(index) if index else None
        role = "user" if parent is None or made[parent].role == "assistant" else "assistant"
        text = " ".join(generator.choices(WORDS, k=generator.randint(1, 12)))
        values = {key: float(generator.randint(0, 4)) for key in STEERLM.names} if role == "assistant" else {}
        made.append(Message(role, text, parent, values, values, "test" if values else None))  # type: ignore[arg-type]
    return Conversation(name, tuple(made), system=generator.choice(["", "Be brief."]), source="test")


@st.composite
def token_trees(draw: st.DrawFn, name: str = "tree", most: int = 10, foils: bool = True) -> TokenTree:
    """Trees of segments in which every token is another number, so that each can be followed through packing."""
    segments: list[Segment] = []
    counter = draw(st.integers(0, 10**6))

    def fresh(count: int) -> tuple[int, ...]:
        nonlocal counter
        counter += count
        return tuple(range(counter - count, counter))

    root = -1
    if draw(st.booleans()):
        length = draw(st.integers(1, 4))
        segments.append(Segment(fresh(length), (Span("system", length),), -1, -1, length))
        root = 0
    places: list[int] = []  # segment of each message
    for message in range(draw(st.integers(1, most))):
        parent = draw(st.sampled_from([root, *places])) if message else root
        after_response = parent >= 0 and segments[parent].is_response
        # Mostly alternating, though data also hold two turns of one speaker in a row.
        is_response = (parent >= 0 and segments[parent].message >= 0 and not after_response) != draw(
            st.sampled_from([False, False, False, False, True])
        )
        glue = draw(st.integers(0, 2)) if after_response else 0
        places.append(len(segments))
        if not is_response:
            length = glue + draw(st.integers(1, 5))
            segments.append(Segment(fresh(length), (Span("user", length),), parent, message, length, glue))
            continue
        weight = draw(st.sampled_from([0.0, 1.0, 1.0, 1.0, 2.5]))
        text = fresh(draw(st.integers(0, 5)))
        end = fresh(draw(st.integers(1, 2)))
        variants = 1 + (draw(st.sampled_from([0, 0, 0, 1, 2])) if foils and weight else 0)
        lead = fresh(glue + 1)
        for number in range(variants):
            label = fresh(draw(st.integers(0, 2)))
            ids = lead + label + text + end
            roles = (("marker", len(lead)), ("label", len(label)), ("response", len(text)), ("end", len(end)))
            spans = tuple(Span(role, length) for role, length in roles if length)  # type: ignore[arg-type]
            foil_of = places[message] if number else -1
            segments.append(Segment(ids, spans, parent, message, len(ids) - len(end), glue, weight, foil_of))
    return TokenTree(name, tuple(segments))


def within(tree: TokenTree, vocabulary: int) -> TokenTree:
    """The same tree with its tokens scattered over a small vocabulary, for a network."""
    scattered = (
        replace(segment, ids=tuple(token * 2654435761 % 4294967291 % vocabulary for token in segment.ids))
        for segment in tree.segments
    )
    return TokenTree(tree.conversation, tuple(scattered))
