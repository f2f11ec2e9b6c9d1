"""Measures of texts, against counts by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
import textstat

from steerlm.evaluation.baselines import text_statistics
from steerlm.evaluation.text_measures import TEXT_MEASURES, text_measures

OF = {measure.name: measure.of for measure in text_measures()}


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("characters", "Ab c", 4),
        ("words", "It's a well-known fact: 42 is 6*7.", 8),
        ("type_token_ratio", "The cat saw the dog", 4 / 5),
        ("type_token_ratio", " ".join(["same"] * 60), 1 / 50),
        # Twice the same fifty: every window holds each of them once, so that length alone changes nothing.
        ("type_token_ratio", " ".join([f"w{k}" for k in range(50)] * 2), 1.0),
        ("list_share", "Buy:\n- salt\n\n2. water\n* sea", 3 / 4),
        ("list_share", "5 - 3 is 2", 0),
        ("code", "So:\n```python\nx = 1\n```", 1),
        ("code", "the `x` variable", 0),
        ("repetition", "a b c d a b c d", 1 / 5),
        ("repetition", "all words are new here", 0),
        ("refusal", "I'm sorry, but I can't help with that.", 1),
        ("refusal", "As an AI language model, I have no taste.", 1),
        ("refusal", "The sea can't be drained. It answers to no one.", 0),
        ("toxic_words", "You asshole, this is nice", 20),
        ("toxic_words", "A bass from Scunthorpe in a classic assembly", 0),
    ],
)
def test_by_hand(name: str, text: str, value: float) -> None:
    assert OF[name](text) == pytest.approx(value)


def test_harder_text_has_a_higher_grade() -> None:
    easy = "The cat sat on the mat. It was a big cat."
    hard = "Notwithstanding considerable methodological heterogeneity, the investigators extrapolated longitudinally."
    assert OF["reading_grade"](easy) < 3 < 12 < OF["reading_grade"](hard)


@pytest.mark.parametrize(
    "text",
    [
        "I cannot fulfill your request.",
        "I can't create content like that.",
        "I can’t create content like that.",
        "I apologize, but I cannot discuss this.",
        "I can not help you with that.",
        "I’m sorry, but I’m unable to look that up.",
        "I'm sorry, but that is not something I can help with.",
        "I'm unable to provide medical advice.",
        "I am not able to generate images.",
        "I must respectfully decline.",
        "I cannot and will not write that.",
        "I can't ethically recommend this.",
        "It is against my guidelines.",
        "I'm sorry, I am an AI language model and don't have personal views.",
        "I am sorry, but I do not have access to that.",
        "As a language model I have no hands.",
        "As an AI assistant that knows much, I have no opinion.",
        "I refuse to answer.",
        "I cannot tell you how to make one.",
        "I'm sorry, but this request is not allowed.",
        "I'm sorry, but that would be illegal.",
        "I won't be able to help with that.",
        "I could not help you with that.",
        "I cannot browse the internet.",
    ],
)
def test_refusals(text: str) -> None:
    assert OF["refusal"](text) == 1
    assert OF["refusal"](f"Well, {text} Ask me about salt.") == 1


@pytest.mark.parametrize(
    "text",
    [
        "I'm sorry to hear about your loss. Here is a plan.",
        "I'm afraid of spiders.",
        "Megan... I'm sorry. Don't hate me",
        "I'm so sorry, I can’t hear you.",
        "I'm afraid it will rain.",
        "I can't help but laugh, and cannot help feeling sad.",
        "I can't wait to create something new.",
        "I can't recommend this book enough.",
        "I will not give up, and I refuse to lose.",
        "I am unable to sleep at night.",
        "I cannot tell you how glad I am.",
        "As an AI researcher she knows.",
        "You cannot create a file there.",
        "I am writing because I cannot access my account since Monday.",
        "BERT is widely used as a language model for search.",
        "Please accept our apologies for the delay to the AI project.",
        "I can't complete the assignment by Friday.",
        "I cannot perform at the concert.",
        "I won't share my dessert.",
        "I can't draw.",
        "I can't offer a refund.",
        "I'm sorry, I can't attend the meeting on Friday.",
    ],
)
def test_no_refusals(text: str) -> None:
    assert OF["refusal"](text) == 0


@pytest.mark.parametrize("text", ["", " \n", "🙂", "?!", "1"])
def test_every_measure_has_a_value_for_texts_without_words(text: str) -> None:
    for measure in TEXT_MEASURES:
        assert measure.of(text) >= 0 or measure.name == "reading_grade"


@pytest.mark.parametrize("text", ["", "?!", "1", "🙂", "你好世界", "Привет, мир", "你好世界 AI"])
def test_what_is_not_written_in_latin_letters_has_no_reading_grade(text: str) -> None:
    assert math.isnan(OF["reading_grade"](text))
    assert np.isfinite(text_statistics(text, "Why?")).all()


@pytest.mark.parametrize("text", ["Is it?", "Café, naïveté: Ærø", "The letter α is Greek."])
def test_latin_letters_have_one(text: str) -> None:
    assert OF["reading_grade"](text) == textstat.flesch_kincaid_grade(text)
