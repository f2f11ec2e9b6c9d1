"""Attributes, schemas, and the label line that carries values."""

from __future__ import annotations

from pathlib import Path

import pytest

from steerlm.attributes import STEERLM, Attribute, Schema
from steerlm.errors import SchemaError


def of_scale(low: int, high: int) -> Attribute:
    return Attribute("it", low, high, default=high)


@pytest.mark.parametrize(
    ("value", "level"),
    [
        # Half to even, as Python's and NeMo's `round`.
        (0.5, 0),
        (1.5, 2),
        (2.5, 2),
        (3.5, 4),
        (0.500001, 1),
        (2.499999, 2),
        # Clamped before they are rounded.
        (-3.0, 0),
        (4.4999, 4),
        (17, 4),
        (float("inf"), 4),
        (float("-inf"), 0),
        (-0.0, 0),
    ],
)
def test_level_is_clamped_and_rounded_half_to_even(value: float, level: int) -> None:
    assert of_scale(0, 4).level(value) == level


@pytest.mark.parametrize(
    ("low", "high", "value", "level"),
    [(0, 9, 4.5, 4), (0, 9, 8.7, 9), (1, 7, 0.2, 1), (1, 7, 6.5, 6), (-2, 2, -1.5, -2)],
)
def test_level_on_other_scales(low: int, high: int, value: float, level: int) -> None:
    assert of_scale(low, high).level(value) == level


def test_levels_are_all_whole_numbers_of_the_scale() -> None:
    assert list(of_scale(1, 7).levels) == [1, 2, 3, 4, 5, 6, 7]


def test_the_schema_of_llama2_70b_steerlm_chat() -> None:
    line = "quality:4,toxicity:0,humor:0,creativity:0,helpfulness:4,correctness:4,coherence:4,complexity:4,verbosity:4"
    assert STEERLM.label_line(STEERLM.defaults) == line
    assert all((attribute.low, attribute.high) == (0, 4) for attribute in STEERLM)


@pytest.mark.parametrize(
    ("value", "says"),
    [
        (True, "quality=True is not a number"),
        ("3", "quality='3' is not a number"),
        (None, "quality=None is not a number"),
        ([1], r"quality=\[1\] is not a number"),
        (float("nan"), "quality=nan is not finite"),
        (float("inf"), "quality=inf is not finite"),
        (4.01, r"quality=4.01 is outside 0..4"),
        (-1, r"quality=-1 is outside 0..4"),
        (10**400, "hundreds of digits is outside 0..4"),
    ],
)
def test_faults_say_what_is_wrong(value: object, says: str) -> None:
    with pytest.raises(SchemaError, match=says):
        STEERLM.check({"quality": value})


@pytest.mark.parametrize("value", [0, 4, 0.0, 2.75, 4.0])
def test_ratings_on_the_scale_have_no_fault(value: float) -> None:
    assert STEERLM.faults({"quality": value, "humor": value}) == []


def test_all_faults_are_told_at_once() -> None:
    with pytest.raises(SchemaError) as caught:
        STEERLM.check({"quality": 5, "sarcasm": 1, "humor": 2, "verbosity": float("nan")})
    assert str(caught.value).count(";") >= 2
    assert all(word in str(caught.value) for word in ("quality=5", "sarcasm is not an attribute", "verbosity=nan"))
    assert "humor=" not in str(caught.value)


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"name": "Quality"}, "lower-case"),
        ({"name": "a b"}, "lower-case"),
        ({"name": "a\n"}, "lower-case"),
        ({"name": "1a"}, "lower-case"),
        ({"name": ""}, "lower-case"),
        ({"name": "ä"}, "lower-case"),
        ({"name": "a", "low": 4}, "low=4 must be below high=4"),
        ({"name": "a", "default": 5}, r"default=5 is outside 0..4"),
        ({"name": "a", "desirable": "very"}, "must be high, low or choice"),
    ],
)
def test_contradictory_attributes_are_refused(fields: dict[str, object], says: str) -> None:
    with pytest.raises(SchemaError, match=says):
        Attribute(**fields)  # type: ignore[arg-type]


def test_a_schema_needs_attributes_of_different_names() -> None:
    with pytest.raises(SchemaError, match="at least one"):
        Schema(())
    with pytest.raises(SchemaError, match="declared twice: a"):
        Schema((Attribute("a"), Attribute("b"), Attribute("a", 0, 9, 9)))


def test_a_schema_is_a_collection_of_names() -> None:
    assert len(STEERLM) == 9
    assert "humor" in STEERLM
    assert "sarcasm" not in STEERLM
    assert 4 not in STEERLM
    with pytest.raises(SchemaError, match="unknown attribute 'sarcasm'; this schema has quality, toxicity"):
        STEERLM["sarcasm"]


def test_a_part_of_a_schema_keeps_its_order() -> None:
    part = STEERLM.only({"verbosity", "quality"})
    assert part.names == ("quality", "verbosity")
    assert part["verbosity"] == STEERLM["verbosity"]
    assert part.known({"verbosity": 1, "humor": 2}) == {"verbosity": 1}
    with pytest.raises(SchemaError, match="at least one attribute"):
        STEERLM.only(())


def test_label_line_is_in_the_order_of_the_schema() -> None:
    assert STEERLM.label_line({"verbosity": 1.5, "quality": 9, "humor": -1}) == "quality:4,humor:0,verbosity:2"
    assert STEERLM.label_line({}) == ""
    with pytest.raises(SchemaError, match="unknown attribute 'wit'"):
        STEERLM.label_line({"quality": 1, "wit": 2})


@pytest.mark.parametrize(
    "line", ["verbosity:2,quality:4", " verbosity:2 , quality:4\n", "quality:4,verbosity:2,", "quality:04,verbosity:2"]
)
def test_label_lines_are_read_in_any_order(line: str) -> None:
    assert STEERLM.parse_label_line(line) == {"quality": 4, "verbosity": 2}


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("quality", "'quality' is not of the form attribute:integer"),
        ("quality:", "not of the form"),
        ("quality:4.0", "not of the form"),
        ("quality: 4", "not of the form"),
        ("quality:٤", "not of the form"),
        ("quality:" + "9" * 5000, "not of the form"),
        ("quality:4,quality:4", "quality is given twice"),
        ("quality:5", r"quality=5 is outside 0..4"),
        ("quality:-1", r"quality=-1 is outside 0..4"),
        ("wit:4", "unknown attribute 'wit'"),
        (":4", "unknown attribute ''"),
        ("lang:en", "not of the form"),
    ],
)
def test_bad_label_lines_are_refused(line: str, says: str) -> None:
    with pytest.raises(SchemaError, match=says):
        STEERLM.parse_label_line(line)


def test_negative_scales_have_label_lines_too() -> None:
    schema = Schema((Attribute("mood", -2, 2, 0),))
    assert schema.parse_label_line(schema.label_line({"mood": -1.6})) == {"mood": -2}


def test_with_defaults_changes_nothing_else() -> None:
    changed = STEERLM.with_defaults({"verbosity": 1})
    assert changed.defaults == {**STEERLM.defaults, "verbosity": 1}
    assert changed.names == STEERLM.names
    assert STEERLM.defaults["verbosity"] == 4
    with pytest.raises(SchemaError, match="verbosity=7"):
        STEERLM.with_defaults({"verbosity": 7})


@pytest.fixture
def read(tmp_path: Path):
    def read(text: str) -> Schema:
        path = tmp_path / "schema.yaml"
        path.write_text(text, encoding="utf-8")
        return Schema.from_yaml(path)

    return read


def test_yaml_with_a_scale_of_0_to_9(read) -> None:
    schema = read("attributes:\n- {name: quality, high: 9}\n- {name: violence, high: 9, desirable: low}\n")
    assert [(item.low, item.high, item.default) for item in schema] == [(0, 9, 9), (0, 9, 0)]
    assert schema.label_line({"quality": 8.5, "violence": 11}) == "quality:8,violence:9"


def test_yaml_with_a_scale_of_1_to_7(read) -> None:
    schema = read("attributes: [{name: tone, low: 1, high: 7, default: 4, description: 'wärme', desirable: choice}]")
    assert schema.attributes == (Attribute("tone", 1, 7, 4, "wärme", "choice"),)
    assert schema.label_line({"tone": 0}) == "tone:1"


def test_yaml_default_of_an_undesirable_attribute_is_its_low_end(read) -> None:
    assert read("attributes: [{name: spite, low: 1, high: 7, desirable: low}]").defaults == {"spite": 1}


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "expected one key, 'attributes'"),
        ("attributes: []", "at least one attribute"),
        ("attributes: {name: a}", "expected a list"),
        ("attributes: [a]", "expected a list"),
        ("attributes: [{name: a}]\nversion: 1", "expected one key, 'attributes'"),
        ("attributes: [{name: a, max: 4}]", "unknown key 'max'"),
        ("attributes: [{name: a, 1: 4, max: 3}]", "unknown key 1"),
        ("attributes: [{high: 4}]", "without a name"),
        ("attributes: [{name: no}]", "without a name"),
        ("attributes: [{name: a, high: 4.0}]", "high=4.0 is not a whole number"),
        ("attributes: [{name: a, low: true}]", "low=True is not a whole number"),
        ("attributes: [{name: a, default: null}]", "default=None is not a whole number"),
        ("attributes: [{name: a, description: 5}]", "description is not a string"),
        ("attributes: [{name: a}, {name: a}]", "declared twice"),
        ("attributes: [", "cannot read the schema"),
        ("[" * 3000, "cannot read the schema"),
        ("attributes: !!python/object:os.system {}", "cannot read the schema"),
    ],
)
def test_bad_schema_files_are_refused(read, text: str, says: str) -> None:
    with pytest.raises(SchemaError, match=says):
        read(text)


def test_a_schema_file_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(SchemaError, match="cannot read the schema"):
        Schema.from_yaml(tmp_path / "none.yaml")
    (tmp_path / "latin.yaml").write_bytes(b"attributes: [{name: a, description: \xe4}]")
    with pytest.raises(SchemaError, match="cannot read the schema"):
        Schema.from_yaml(tmp_path / "latin.yaml")


def test_faults_of_a_schema_name_its_file(read, tmp_path: Path) -> None:
    with pytest.raises(SchemaError, match=str(tmp_path / "schema.yaml")):
        read("attributes: [{name: a, max: 4}]")
