"""Model cards, read by the library of the hub that shows them: what they say of a model, and which of them stay."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest
from huggingface_hub import ModelCard
from markdown_it import MarkdownIt

from carded import INFO, cited, silent, steering
from steerlm.attributes import STEERLM, Schema
from steerlm.card import FILE, MARK, prompt_text, refresh_card, write_card
from steerlm.dialects import DIALECTS
from steerlm.errors import ConfigError, ModelError
from steerlm.evaluation.records import evaluation_folder, write_record
from steerlm.models.directory import Base, Kind
from tiny import renderer


@pytest.fixture
def model(tmp_path: Path) -> Path:
    directory = tmp_path / "my-policy"
    directory.mkdir()
    INFO.save(directory)
    return directory


def test_a_policy(model: Path) -> None:
    text = write_card(model).read_text()
    card = ModelCard(text)
    data = card.data.to_dict()
    assert data["base_model"] == "HuggingFaceTB/SmolLM2-135M-Instruct"
    assert data["license"] == "apache-2.0"
    assert (data["library_name"], data["pipeline_tag"]) == ("transformers", "text-generation")
    assert "steerlm" in data["tags"]
    assert "model-index" not in data
    assert "| verbosity | 0 to 4 | 4 |" in text
    assert "Not yet evaluated" in text
    assert "loss 1.2500" in text
    assert "| epochs | 2.0 |" in text
    assert "secret" not in text
    assert str(model.parent) not in text


@pytest.mark.parametrize("kind", ["policy", "attribute-model"])
def test_how_to_run_an_adapter(tmp_path: Path, kind: Kind) -> None:
    """Its directory has no weights of the base, so that what takes plain weights cannot load it."""
    directory = tmp_path / "adapter"
    directory.mkdir()
    replace(INFO, kind=kind, base=Base("org/base", "b" * 16)).save(directory)
    text = write_card(directory).read_text()
    assert ModelCard(text).data.to_dict()["library_name"] == "peft"
    assert "AutoModelFor" not in text
    assert "vllm serve adapter`" not in text
    if kind == "policy":
        assert 'model = AutoPeftModelForCausalLM.from_pretrained("adapter")\n' in text
        assert "steerlm export hf adapter --out adapter-merged\nvllm serve adapter-merged\n" in text
        assert 'model="adapter-merged"' in text
    else:
        loaded = 'AutoPeftModelForSequenceClassification.from_pretrained("adapter", num_labels=len(names))'
        assert f"model = {loaded}\n" in text
        assert '"humor", "creativity"' in text
    blocks = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    assert blocks
    for block in blocks:
        compile(block, "card", "exec")


def test_the_data_are_named(tmp_path: Path) -> None:
    """Only what was imported from the hub is a data set there; a path or a name of one's own may look like one."""
    sources = ["../secret", "data/train.jsonl", "hub:OpenAssistant/oasst1", "hub:no set", "mine", "team/forum"]
    named = {"sources": sources, "annotated_by": ["a77e"]}
    replace(INFO, provenance=INFO.provenance | named).save(tmp_path)
    text = write_card(tmp_path).read_text()
    assert ModelCard(text).data.datasets == ["OpenAssistant/oasst1"]
    assert "Sources of the data: ../secret, data/train.jsonl, hub:OpenAssistant/oasst1" in text
    assert "Annotated by the attribute model `a77e`." in text
    assert cited(text) == ["2310.05344", "2311.09528", "2304.07327"]


def test_a_card_of_somebody_else_stays(model: Path) -> None:
    (model / FILE).write_text("My own words.")
    said: list[str] = []
    refresh_card(model, said.append)
    assert (model / FILE).read_text() == "My own words."
    assert said == [
        f"{model / FILE} was not made by steerlm and stays as it is; `steerlm card {model} --overwrite` makes it anew"
    ]
    with pytest.raises(ModelError, match="was not made by steerlm; move it away, or pass --overwrite"):
        write_card(model)
    assert MARK in write_card(model, overwrite=True).read_text()


def test_a_card_in_another_encoding_stays(model: Path) -> None:
    theirs = "Für mich".encode("latin-1")
    (model / FILE).write_bytes(theirs)
    said: list[str] = []
    refresh_card(model, said.append)
    assert (model / FILE).read_bytes() == theirs
    assert "was not made by steerlm and stays as it is" in said[0]
    assert MARK in write_card(model, overwrite=True).read_text()


def test_a_card_without_a_digest_stays(model: Path) -> None:
    """Earlier versions wrote none, so that nobody knows whether it was edited."""
    (model / FILE).write_text(f"{MARK}. -->\n\n# my-policy\n")
    with pytest.raises(ModelError, match=r"was made by an earlier version, .*; move it away, or pass --overwrite"):
        write_card(model)


@pytest.mark.parametrize("name", ["mit\nor apache-2.0", "mit\r", "mit\n"])
def test_a_licence_is_one_line(model: Path, name: str) -> None:
    with pytest.raises(ConfigError, match="a licence is one line"):
        write_card(model, license_=name)
    assert not (model / FILE).exists()


def test_an_edited_card_stays(model: Path) -> None:
    write_card(model)
    refresh_card(model, silent)
    mine = (model / FILE).read_text() + "\n## A section of mine\n"
    (model / FILE).write_text(mine)
    said: list[str] = []
    refresh_card(model, said.append)
    assert (model / FILE).read_text() == mine
    assert "was edited after steerlm made it and stays as it is" in said[0]
    with pytest.raises(ModelError, match="was edited after steerlm made it; move it away, or pass --overwrite"):
        write_card(model)
    assert "A section of mine" not in write_card(model, overwrite=True).read_text()


def test_a_licence_that_was_given_stays_when_the_card_is_made_anew(model: Path) -> None:
    write_card(model, license_="mit")
    write_record(evaluation_folder(model), "steering", steering(INFO.fingerprint))
    refresh_card(model, silent)
    text = (model / FILE).read_text()
    assert "| humor | steers |" in text
    assert ModelCard(text).data.license == "mit"
    assert ModelCard(write_card(model, license_="llama2").read_text()).data.license == "llama2"


@pytest.mark.parametrize(
    ("given", "fields"),
    [
        ("Apache 2.0", {"license": "apache-2.0"}),
        ("©", {"license": "other"}),
        ("Llama 2 Community License", {"license": "other", "license_name": "llama-2-community-license"}),
        ("mine-1.0", {"license": "other", "license_name": "mine-1.0"}),
    ],
)
def test_the_hub_takes_other_licences_by_a_name_of_their_own(model: Path, given: str, fields: dict[str, str]) -> None:
    text = write_card(model, license_=given).read_text()
    found = ModelCard(text).data.to_dict()
    assert {name: value for name, value in found.items() if name.startswith("license")} == fields
    assert f"\n{given}. The terms" in text


@pytest.mark.parametrize("dialect", sorted(DIALECTS))
@pytest.mark.parametrize("turns", [1, 2])
def test_the_prompt_is_that_of_the_chat_template(dialect: str, turns: int) -> None:
    made = renderer("chatml" if dialect == "chatml" else "llama3", dialect)
    line = STEERLM.label_line(STEERLM.defaults)
    messages: list[dict[str, str]] = []
    for turn in range(1, turns + 1):
        number = f" {turn}" if turns > 1 else ""
        messages.append({"role": "user", "content": f"{{prompt{number}}}"})
        if turn < turns:
            messages.append({"role": "assistant", "content": f"{{response{number}}}"})
    shown = made.tokenizer.apply_chat_template(
        messages,
        chat_template=made.chat_template("policy", "Be kind."),
        tokenize=False,
        add_generation_prompt=True,
    )
    assert prompt_text(DIALECTS[dialect], "Be kind.", line, turns) == shown


def test_no_text_of_a_model_breaks_its_card(tmp_path: Path) -> None:
    """As a reader of Markdown sees it: the table has its rows and cells, the prompts their blocks."""
    described = [
        replace(item, description="dry | wet\nhumour \\") if item.name == "humor" else item for item in STEERLM
    ]
    system = "Answer so:\n```\n# Injected\n```"
    (tmp_path / "model").mkdir()
    replace(INFO, schema=Schema(tuple(described)), system=system).save(tmp_path / "model")
    write_card(tmp_path / "model")
    text = ModelCard.load(tmp_path / "model" / FILE).text
    read = MarkdownIt("commonmark").enable("table").parse(text)
    assert not [token for token in read if token.type == "inline" and "Injected" in token.content]
    assert len([token for token in read if token.type == "fence" and "# Injected" in token.content]) == 2
    table = read[: next(place for place, token in enumerate(read) if token.type == "table_close")]
    cells = [table[place + 1].content for place, token in enumerate(table) if token.type == "td_open"]
    assert len(cells) == 5 * len(STEERLM)
    assert [cell for cell in cells if cell.startswith("dry")] == ["dry | wet humour \\\\"]
