"""Statistics against numbers worked out by hand, and tokens against flattened threads."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from steerlm.attributes import STEERLM, Attribute, Schema
from steerlm.conversation import Conversation, Message
from steerlm.dialects import DIALECTS, Renderer
from steerlm.errors import SchemaError
from steerlm.sources.statistics import Lengths, statistics


def rated(name: str, *ratings: dict[str, float]) -> Conversation:
    answers = tuple(Message("assistant", "x" * (index + 1), 0, values) for index, values in enumerate(ratings))
    return Conversation(name, (Message("user", "ask"), *answers), source="s")


def byte_tokenizer() -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(
        models.BPE(vocab={c: i for i, c in enumerate(pre_tokenizers.ByteLevel.alphabet())}, merges=[])
    )
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer)


DATA = [
    rated("a", {"quality": 1.0, "humor": 4.0}, {"quality": 2.5, "humor": 3.0}, {}),
    rated("b", {"quality": 4.0, "humor": 0.0}, {"humor": 2.0}),
]


def test_counts_lengths_and_sources() -> None:
    found = statistics(DATA)
    assert (found.conversations, found.messages, found.responses, found.labelled_responses) == (2, 7, 5, 4)
    assert (found.threads, found.most_responses_to_a_prompt, found.sources) == (5, 3, {"s": 2})
    # Responses of 1, 2, 3, 1, 2 characters.
    assert found.response_characters == Lengths(5, 9, 1.8, 2.0, pytest.approx(2.6), 3)
    assert found.prompt_characters == Lengths(2, 6, 3.0, 3.0, 3.0, 3)


def test_each_attribute_is_described_over_the_responses_that_have_it() -> None:
    quality = statistics(DATA).attributes["quality"]
    # 1, 2.5, 4: mean 2.5, squared deviations 2.25 + 0 + 2.25 over 2; 2.5 rounds half to even.
    assert (quality.count, quality.mean, quality.sd) == (3, 2.5, 1.5)
    assert quality.histogram == {0: 0, 1: 1, 2: 1, 3: 0, 4: 1}
    toxicity = statistics(DATA).attributes["toxicity"]
    assert (toxicity.count, toxicity.mean, toxicity.sd) == (0, None, None)
    assert statistics([rated("a", {"quality": 1.0})]).attributes["quality"].sd is None


def test_correlations_are_over_pairs_that_have_both() -> None:
    found = statistics(DATA).correlations
    # (1, 4), (2.5, 3), (4, 0): deviations -1.5, 0, 1.5 and 5/3, 2/3, -7/3; the pair without quality does not count.
    wanted = (-1.5 * 5 / 3 + 1.5 * -7 / 3) / math.sqrt(4.5 * (25 + 4 + 49) / 9)
    assert found["quality"]["humor"] == pytest.approx(wanted)
    assert found["humor"]["quality"] == found["quality"]["humor"]
    assert found["quality"]["quality"] == pytest.approx(1.0)
    assert found["quality"]["toxicity"] is None


def test_two_pairs_have_no_correlation() -> None:
    """Any two points lie on a line."""
    found = statistics([rated("a", {"quality": 1.0, "humor": 4.0}, {"quality": 2.0, "humor": 1.0})])
    assert found.correlations["quality"]["humor"] is None


def test_a_rating_that_never_varies_has_no_correlation() -> None:
    data = [rated("a", *({"quality": 0.1 + 0.2, "humor": float(number)} for number in range(4)))]
    assert statistics(data).correlations["quality"]["humor"] is None


def test_predictions_are_described_apart_from_ratings() -> None:
    message = Message("assistant", "x", 0, {"quality": 1.0}, {"quality": 3.0})
    data = [Conversation("a", (Message("user", "ask"), message))]
    assert statistics(data).attributes["quality"].mean == 1.0
    assert statistics(data, values_from="predicted").attributes["quality"].mean == 3.0


def test_nothing_at_all_is_described_without_fuss() -> None:
    found = statistics([])
    assert (found.conversations, found.threads, found.attributes["quality"].count) == (0, 0, 0)
    assert found.response_characters.longest == 0


def test_an_attribute_outside_the_schema_is_an_error() -> None:
    with pytest.raises(SchemaError, match="unknown attribute 'humor'"):
        statistics(DATA, Schema((Attribute("quality"),)))


@pytest.mark.parametrize("dialect", list(DIALECTS))
def test_token_counts_are_those_of_the_flattened_texts(dialect: str) -> None:
    conversation = Conversation(
        "a",
        (
            Message("user", "hi"),
            Message("assistant", "hello", 0, {"quality": 3.0}),
            Message("user", "and?", 1),
            Message("assistant", "so", 2),
            Message("assistant", "no", 2, {"humor": 1.0}),
            Message("assistant", "hey", 0),
        ),
        system="be",
    )
    renderer = Renderer(DIALECTS[dialect], byte_tokenizer(), STEERLM)
    found = statistics([conversation], renderer=renderer).tokens
    assert found is not None

    def chain(path: tuple[int, ...]) -> Conversation:
        messages = [conversation.messages[index] for index in path]
        return Conversation(
            "c",
            tuple(Message(m.role, m.text, k - 1 if k else None, m.ratings) for k, m in enumerate(messages)),
            conversation.system,
        )

    def length(path: tuple[int, ...], task: str) -> int:
        thread = chain(path)
        labels = {index: thread.messages[index].ratings for index in thread.responses}
        return len(renderer.thread(thread, task, labels))  # type: ignore[arg-type]

    threads = [length(path, "policy") for path in conversation.threads()]
    assert found.threads == sum(threads)
    assert found.longest_path == max(threads)
    assert found.requests == sum(length(conversation.path(index), "score") for index in conversation.responses)
    assert found.tree < found.threads
    assert found.threads_to_tree == found.threads / found.tree
    assert found.requests_to_tree == found.requests / found.score_tree
    assert found.responses.count == 4
    # Bytes are tokens here: hello, so, no, hey, each with the newline that closes it in the nemo dialect.
    assert found.responses.total == 12 + (4 if dialect == "nemo" else 0)


def test_json_holds_it_all(tmp_path: Path) -> None:
    renderer = Renderer(DIALECTS["nemo"], byte_tokenizer(), STEERLM)
    plain = json.loads(json.dumps(statistics(DATA, renderer=renderer).to_dict()))
    assert plain["attributes"]["quality"]["histogram"]["2"] == 1
    assert plain["tokens"]["threads_to_tree"] > 1
    assert plain["correlations"]["quality"]["toxicity"] is None
