"""Attribute models against people's preferences: the weighted sum, beside length and a ridge regression."""

from __future__ import annotations

import io
import random
from dataclasses import replace

import pytest
from rich.console import Console

from rated import SETTINGS, clipped, rated_by, unrated, with_ratings
from steerlm.annotation import Scorer
from steerlm.attributes import STEERLM, Schema
from steerlm.conversation import Conversation, Message
from steerlm.errors import ConfigError
from steerlm.evaluation.attribute_model import evaluate_attributes
from steerlm.evaluation.attribute_settings import AttributeEvaluationSettings
from steerlm.evaluation.attribute_tables import evaluation_view
from steerlm.evaluation.preferences import Preference, Preferences
from steerlm.models.load import SteerModel, head_of
from tiny_judge import WORDS


def preferring(rows: list[tuple[str, str, str]]) -> Preferences:
    """Pairs of a better and a worse answer, of subsets."""
    return Preferences(
        tuple(
            Preference(
                Conversation(
                    str(k), (Message("user", f"Why {k}?"), Message("assistant", one, 0), Message("assistant", two, 0))
                ),
                subset,
            )
            for k, (subset, one, two) in enumerate(rows)
        ),
        ties=0,
    )


def test_a_weighted_sum_that_length_outdoes_is_called_so(judge: SteerModel) -> None:
    """People prefer the longer answer; the judge's score of verbosity knows nothing of length. Then they prefer what
    the judge scores higher, whatever the length.
    """
    generator = random.Random(1)
    texts = [sorted((" ".join(generator.choices(WORDS, k=k)) for k in (2, 12)), key=len) for _ in range(50)]
    settings = SETTINGS.model_copy(update={"weights": {"verbosity": 1.0}})
    figures = evaluate_attributes(
        judge, [], settings, preferences={"p": preferring([("a", long, short) for short, long in texts])}
    )["preferences"]["p"]
    assert figures["verdict"] == "does not beat length alone"
    pairs = preferring([("ab"[k % 2], *pair) for k, pair in enumerate(texts)])
    scores = Scorer(judge, SETTINGS).score([pair.conversation for pair in pairs.pairs]).values
    rows = [
        ("ab"[k % 2], *(pair if values[1]["verbosity"] > values[2]["verbosity"] else reversed(pair)))
        for k, (pair, values) in enumerate(zip(texts, scores, strict=True))
    ]
    figures = evaluate_attributes(judge, [], settings, preferences={"p": preferring(rows)})["preferences"]["p"]
    assert figures["accuracy"]["weighted sum"]["value"] == 1.0
    assert figures["verdict"] == "beats length alone"
    assert {name: part["verdict"] for name, part in figures["subset_gains"].items()} == dict.fromkeys(
        "ab", "beats length alone"
    )


def test_a_subset_of_any_name_leaves_the_overall_accuracy(judge: SteerModel) -> None:
    """Of four pairs the first three prefer the longer answer; the subset is called all."""
    rows = [
        ("all", "long answer", "no"),
        ("all", "long answer", "no"),
        ("x", "long answer", "no"),
        ("x", "no", "longer"),
    ]
    record = evaluate_attributes(judge, [], SETTINGS, preferences={"p": preferring(rows)})
    figures = record["preferences"]["p"]
    assert figures["accuracy"]["length"]["value"] == 0.75
    assert {name: part["length"]["value"] for name, part in figures["subsets"].items()} == {"all": 1.0, "x": 0.5}
    assert "ridge" not in figures["accuracy"]
    sources = [replace(c, source=("all", "x")[k % 2]) for k, c in enumerate(rated_by(unrated(6), clipped, judge))]
    quality = evaluate_attributes(judge, sources, SETTINGS)["attributes"]["quality"]
    assert quality["overall"]["n"] == 18
    assert {name: part["n"] for name, part in quality["sources"].items()} == {"all": 9, "x": 9}


def test_names_in_the_data_are_no_markup(judge: SteerModel) -> None:
    """Of sources, subsets and files, on a console that reads markup and names of emojis."""
    conversations = [replace(c, source=("set[/x]", "b[bold]")[k % 2]) for k, c in enumerate(unrated(4))]
    rows = [("a[b]", "long answer", "no"), (":sea:", "no", "longer"), ("[/c]", "no", "longer")]
    record = evaluate_attributes(
        judge, rated_by(conversations, clipped, judge), SETTINGS, preferences={"[red]p[/x].jsonl": preferring(rows)}
    )
    shown = Console(record=True, width=120, file=io.StringIO())
    shown.print(evaluation_view(record))
    text = shown.export_text()
    tables = "\n".join(line for line in text.splitlines() if "too few" not in line)
    for name in ("set[/x]", "b[bold]", "│ a[b]", "│ :sea:", "│ [/c]", "[red]p[/x].jsonl: the preferred"):
        assert name in tables


def test_the_ridge_on_preferences(judge: SteerModel) -> None:
    """The training data rate verbosity by length: a sum that weighs it down prefers the shorter answer."""
    train = [with_ratings(c, lambda message: {"verbosity": min(len(message.text) / 20, 4.0)}) for c in unrated(30)]
    generator = random.Random(1)
    texts = [sorted((" ".join(generator.choices(WORDS, k=k)) for k in (2, 12)), key=len) for _ in range(10)]
    pairs = preferring([("a", short, long) for short, long in texts])
    settings = SETTINGS.model_copy(update={"weights": {"verbosity": -1.0}})
    accuracy = evaluate_attributes(judge, [], settings, train, {"p": pairs})["preferences"]["p"]["accuracy"]
    assert accuracy["ridge"]["value"] == 1.0
    assert accuracy["length"]["value"] == 0.0
    both = SETTINGS.model_copy(update={"weights": {"verbosity": -1.0, "humor": 1.0}})
    accuracy = evaluate_attributes(judge, [], both, train, {"p": pairs})["preferences"]["p"]["accuracy"]
    assert "ridge" not in accuracy


def test_a_weight_of_an_unknown_attribute_is_refused(judge: SteerModel) -> None:
    """Those of the default set are left out where the model does not know them."""
    few = Schema(tuple(item for item in STEERLM if item.name in ("coherence", "humor")))
    head = head_of(judge.network)
    head.weight.data = head.weight.data[[2, 6]].clone()
    model = replace(judge, info=replace(judge.info, schema=few), renderer=replace(judge.renderer, schema=few))
    pairs = {"p": preferring([("a", "long answer", "no")])}
    assert evaluate_attributes(model, [], SETTINGS, preferences=pairs)["preferences"]["p"]["weights"] == {
        "coherence": 0.45
    }
    misspelt = AttributeEvaluationSettings(context=512, weights={"helpfullness": 1.0, "coherence": 0.5})
    with pytest.raises(ConfigError, match="does not know helpfullness; give weights of attributes that it knows"):
        evaluate_attributes(model, [], misspelt, preferences=pairs)


def test_pairs_that_are_read_without_their_oldest_turns_are_counted(judge: SteerModel) -> None:
    """Of two prompts one begins with more words than the context holds; both its answers are scored without these."""
    pairs = preferring([("a", "yes yes", "no"), ("a", "yes yes", "no")])
    first, second = pairs.pairs
    old = (Message("user", " ".join(WORDS * 20)), Message("assistant", "Yes.", 0))
    moved = tuple(
        replace(message, parent=None if message.parent is None else message.parent + 2)
        for message in second.conversation.messages
    )
    long = replace(
        second, conversation=replace(second.conversation, messages=(*old, replace(moved[0], parent=1), *moved[1:]))
    )
    settings = SETTINGS.model_copy(update={"context": 64})
    record = evaluate_attributes(judge, [], settings, preferences={"p": Preferences((first, long), ties=0)})
    figures = record["preferences"]["p"]
    assert (figures["pairs"], figures["unscored"], figures["truncated"]) == (2, 0, 2)
    shown = Console(record=True, width=120, file=io.StringIO())
    shown.print(evaluation_view(record))
    assert "2 responses scored without their oldest turns" in " ".join(shown.export_text().split())
