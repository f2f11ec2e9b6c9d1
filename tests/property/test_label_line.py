"""Label lines and schemas come back as they went, whatever the schema and the values."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from references import level
from steerlm.attributes import STEERLM, Schema
from steerlm.errors import SchemaError
from strategies import partial_values, schemas


@given(st.data(), schemas())
def test_parsing_a_rendered_line_gives_the_levels(data: st.DataObject, schema: Schema) -> None:
    values = data.draw(partial_values(schema))
    expected = {name: level(value, schema[name].low, schema[name].high) for name, value in values.items()}
    line = schema.label_line(values)
    assert schema.parse_label_line(line) == expected
    assert [item.partition(":")[0] for item in line.split(",") if item] == [n for n in schema.names if n in values]
    assert schema.label_line(expected) == line


@given(schemas(), st.data())
def test_values_beyond_the_scale_are_clamped(schema: Schema, data: st.DataObject) -> None:
    attribute = data.draw(st.sampled_from(schema.attributes))
    value = data.draw(st.floats(allow_nan=False, allow_infinity=False))
    assert attribute.level(value) == level(value, attribute.low, attribute.high)


@given(st.data(), schemas())
def test_values_on_the_scale_have_no_faults(data: st.DataObject, schema: Schema) -> None:
    assert schema.faults(data.draw(partial_values(schema))) == []


PIECES = ["quality", "humor", "wit", ":", ",", "0", "4", "5", "-", " ", "\n", "٤", "4.0", ""]


@given(st.lists(st.sampled_from(PIECES), max_size=9).map("".join) | st.text())
def test_any_text_is_a_label_line_or_a_schema_error(text: str) -> None:
    try:
        values = STEERLM.parse_label_line(text)
    except SchemaError:
        return
    assert STEERLM.faults(values) == []
    assert STEERLM.parse_label_line(STEERLM.label_line(values)) == values


@given(schemas())
def test_schemas_survive_plain_data(schema: Schema) -> None:
    assert Schema.from_list(schema.to_list()) == schema
