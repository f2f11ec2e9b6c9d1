"""`steerlm data`: what it writes, prints and refuses."""

from __future__ import annotations

import gzip
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from cyclopts import App
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from steerlm.attributes import STEERLM
from steerlm.cli.data import data_app
from steerlm.cli.data_convert import held_out_name
from steerlm.cli.data_inspect import check_file, renderer_for
from steerlm.cli.data_views import token_texts
from steerlm.conversation import Conversation, Message
from steerlm.errors import ConfigError, DataError, SteerLMError
from steerlm.files import load_conversations, write_conversations, write_jsonl
from steerlm.models.directory import ModelInfo
from steerlm.sources import import_conversations

ROWS = [
    {"prompt": f"prompt {number}", "response": f"response {number} {more}", "helpfulness": number % 5, "verbosity": 1}
    for number in range(40)
    for more in ("a", "b")
]
TREE = Conversation(
    "tree",
    (
        Message("user", "why is [bold]it[/bold] so?\x1b[31m"),
        Message("assistant", "because", 0, {"quality": 3.0, "humor": 0.5}, {"quality": 2.25}, "f00d"),
        Message("assistant", "never mind", 0),
    ),
    "be nice",
    "somewhere",
)

Run = Callable[..., str]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    """`run("stats", path, ...)` gives what the command prints; errors are raised."""
    app = App(name="steerlm", result_action="return_value")
    app.command(data_app)

    def _run(*arguments: object) -> str:
        app(["data", *(str(item) for item in arguments)], exit_on_error=False, print_error=False)
        return capsys.readouterr().out

    return _run


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    write_jsonl(tmp_path / "rows.jsonl", ROWS)
    return tmp_path / "rows.jsonl"


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    write_conversations(tmp_path / "tree.jsonl", [Conversation("first", (Message("user", "x"),)), TREE])
    return tmp_path / "tree.jsonl"


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tokenizer whose tokens are bytes, as a folder that transformers loads."""
    folder = tmp_path_factory.mktemp("tokenizer")
    made = Tokenizer(models.BPE(vocab={c: i for i, c in enumerate(pre_tokenizers.ByteLevel.alphabet())}, merges=[]))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    PreTrainedTokenizerFast(tokenizer_object=made).save_pretrained(folder)
    return folder


def test_import_writes_conversations_and_says_what_it_did(run: Run, rows: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    said = run("import", "helpsteer", rows, "--out", out, "--attributes", "helpfulness")
    assert load_conversations(out)[0].messages[1].ratings == {"helpfulness": 0.0}
    assert said.splitlines() == [
        "read 80 records, 160 messages, 160 ratings",
        "kept 40 conversations, 120 messages, 80 responses, 80 rated responses, 80 ratings",
        "joined 40 messages with equal ones",
        "left out 80 ratings: of attributes not taken",
        f"wrote 40 conversations to {out}",
    ]


def test_import_of_another_kind_says_which(run: Run, rows: Path, tree: Path, tmp_path: Path) -> None:
    for kind, source, found in (("oasst", rows, "helpsteer"), ("helpsteer", tree, "jsonl"), ("jsonl", rows, "helps")):
        with pytest.raises(DataError, match=rf"line 1: .*; this looks like {found}.* data, which `steerlm data import"):
            run("import", kind, source, "--out", tmp_path / "out.jsonl")
    with pytest.raises(DataError, match=r"a directory, where a file is needed$"):
        run("import", "oasst", tmp_path, "--out", tmp_path / "out.jsonl")


def test_import_with_a_split_writes_two_files_that_hold_it_all(run: Run, rows: Path, tmp_path: Path) -> None:
    out = tmp_path / "new" / "out.jsonl.gz"
    said = json.loads(run("import", "helpsteer", rows, "--out", out, "--split", 0.25, "--seed", 3, "--json"))
    kept, held_out = load_conversations(out), load_conversations(out.with_name("out.held-out.jsonl.gz"))
    assert said["written"] == {str(out): len(kept), str(out.with_name("out.held-out.jsonl.gz")): len(held_out)}
    ids = {item.id for item in kept} | {item.id for item in held_out}
    assert (len(kept) + len(held_out), len(ids)) == (40, 40)
    assert ids == {item.id for item in import_conversations("helpsteer", rows).conversations}
    assert gzip.decompress(out.read_bytes()).count(b"\n") == len(kept)


@pytest.mark.parametrize(
    ("name", "wanted"),
    [
        ("a.jsonl", "a.held-out.jsonl"),
        ("a.b.jsonl.zst", "a.b.held-out.jsonl.zst"),
        ("a.json", "a.held-out.json"),
        ("a", "a.held-out"),
    ],
)
def test_the_name_of_the_held_out_file(name: str, wanted: str) -> None:
    assert held_out_name(Path("x") / name) == Path("x") / wanted


def test_import_takes_every_option(run: Run, tmp_path: Path) -> None:
    base = {"message_tree_id": "t", "deleted": True, "review_result": False, "lang": "en"}
    labels = {"name": ["quality", "helpfulness"], "value": [0.5, 0.5], "count": [1, 2]}
    write_jsonl(
        tmp_path / "in.jsonl",
        [
            {**base, "message_id": "a", "parent_id": None, "role": "prompter", "text": "u"},
            {**base, "message_id": "b", "parent_id": "a", "role": "assistant", "text": "r", "labels": labels},
            {**base, "message_id": "c", "parent_id": "a", "role": "assistant", "text": "r" * 99},
            {**base, "message_id": "d", "parent_id": "a", "role": "nobody", "text": "r"},
        ],
    )
    flags = (
        "--attributes quality --attributes helpfulness --languages de --languages en --keep-deleted --keep-rejected "
    )
    flags += "--min-labels 2 --system be --max-characters 50 --max-conversations 1 --skip-faulty"
    run("import", "oasst", tmp_path / "in.jsonl", "--out", tmp_path / "out.jsonl", *flags.split())
    [conversation] = load_conversations(tmp_path / "out.jsonl")
    assert conversation.system == "be"
    assert [dict(item.ratings) for item in conversation.messages] == [{}, {"helpfulness": 2.0}]


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--split", "1.5"], r"--split 1\.5 must lie between 0 and 1"),
        (["--split", "0.000001"], r"--split 1e-06 leaves nothing for .*held-out"),
        (["--languages", "en"], "languages means nothing for helpsteer"),
        (["--min-labels", "0"], "min_labels=0 must be at least 1"),
        (["--max-characters", "1"], r"(?s)nothing to write to .*left out 80 messages: longer than 1 characters"),
        (["--schema", "gone.yaml"], "gone.yaml: cannot read the schema"),
    ],
)
def test_import_refuses_and_writes_nothing(
    run: Run, rows: Path, tmp_path: Path, arguments: list[str], complaint: str
) -> None:
    if "--max-characters" in arguments:
        write_jsonl(rows, [{**row, "prompt": "p"} for row in ROWS])
    with pytest.raises(SteerLMError, match=complaint):
        run("import", "helpsteer", rows, "--out", tmp_path / "out.jsonl", *arguments)
    assert [item.name for item in tmp_path.iterdir()] == ["rows.jsonl"]


def test_import_does_not_write_over_what_it_reads(run: Run, rows: Path) -> None:
    before = rows.read_bytes()
    with pytest.raises(ConfigError, match="give --out another name"):
        run("import", "helpsteer", rows, "--out", rows.parent / "." / "rows.jsonl")
    with pytest.raises(ConfigError, match="Parquet is read but not written"):
        run("import", "helpsteer", rows, "--out", "x.parquet")
    assert rows.read_bytes() == before


def test_export_writes_what_nemo_import_reads_again(run: Run, tree: Path, tmp_path: Path) -> None:
    for kind in ("nemo-sft", "nemo-regression"):
        said = run("export", kind, tree, "--out", tmp_path / f"{kind}.jsonl")
        assert said.startswith(f"wrote {2 if kind == 'nemo-sft' else 1} records\n")
        [back] = import_conversations("nemo", tmp_path / f"{kind}.jsonl").conversations
        assert back.messages[1].ratings == {"quality": 3.0, "humor": 0.0}
    counts = json.loads(run("export", "nemo-sft", tree, "--out", tmp_path / "sft.jsonl", "--json"))
    assert (counts["records"], counts["single_messages"], counts["unlabelled_responses"]) == (2, 1, 1)


def test_export_options(run: Run, tree: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    flags = ["--labels", "predicted", "--exact", "--system", "new"]
    run("export", "nemo-regression", tree, "--out", out, *flags)
    [record] = [json.loads(line) for line in out.read_text().splitlines()]
    assert record["label"] == [2.25] + [-100.0] * 8
    assert record["text"].startswith("<extra_id_0>System\nnew\n")
    for flag in (["--exact"], ["--system", "x"]):
        with pytest.raises(ConfigError, match=f"{flag[0]} means nothing for nemo-sft"):
            run("export", "nemo-sft", tree, "--out", out, *flag)


def test_export_of_nothing_leaves_no_file(run: Run, tmp_path: Path) -> None:
    write_conversations(
        tmp_path / "in.jsonl", [Conversation("a", (Message("user", "x"), Message("assistant", "y", 0)))]
    )
    with pytest.raises(DataError, match="nothing in it to export as nemo-regression with labels from ratings"):
        run("export", "nemo-regression", tmp_path / "in.jsonl", "--out", tmp_path / "out.jsonl")
    assert not (tmp_path / "out.jsonl").exists()


def test_stats_in_words(run: Run, tree: Path, tokenizer: Path) -> None:
    said = run("stats", tree, "--tokenizer", tokenizer)
    lines = [line.split() for line in said.splitlines()]
    assert ["messages", "4"] in lines
    assert ["quality", "1", "3.000", "-", "0", "0", "0", "1", "0"] in lines
    assert re.search(r"training: \d+ tokens as trees, \d+ as threads \(1\.\d\d times\)", said)
    assert all(len(line) <= 80 for line in said.splitlines())
    assert "--tokenizer" not in said
    assert "In tokens" in (without := run("stats", tree)).splitlines()[-1]
    assert "--tokenizer MODEL" in without


def test_stats_in_json(run: Run, tree: Path, tokenizer: Path) -> None:
    found = json.loads(run("stats", tree, "--json", "--values", "predicted"))
    assert found["attributes"]["quality"]["mean"] == 2.25
    assert found["tokens"] is None
    found = json.loads(run("stats", tree, "--json", "--tokenizer", tokenizer, "--dialect", "chatml"))
    assert found["tokens"]["dialect"] == "chatml"
    with pytest.raises(ConfigError, match="--dialect needs --tokenizer"):
        run("stats", tree, "--dialect", "chatml")


def test_check_finds_every_fault_with_its_place(run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "in.jsonl"
    good = json.dumps(TREE.to_dict())
    bad = json.dumps(
        {"id": "b", "messages": [{"role": "x", "text": "y"}, {"role": "user", "text": "z", "ratings": {"humor": 9}}]}
    )
    path.write_text(f"{good}\n{bad}\n{{\n{good}\n", encoding="utf-8")
    with pytest.raises(DataError, match="3 faulty; correct them"):
        run("check", path)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"{path}:2: conversation 'b': message 0: role='x' must be user or assistant"
    assert lines[1].startswith(f"{path}:2: conversation 'b': message 1: rating: humor=9 is outside 0..4")
    assert lines[2].startswith(f"{path}:3: not valid JSON at column")
    assert lines[3].startswith(f"{path}:4: conversation 'tree': id 'tree' was already used on line 1")
    assert lines[4:] == ["1 good, 3 faulty"]
    with pytest.raises(DataError):
        run("check", path, "--json")
    found = json.loads(capsys.readouterr().out)
    assert (found["good"], found["faulty"]) == (1, 3)
    assert [item["line"] for item in found["faults"]] == [2, 3, 4]
    assert [len(item["messages"]) for item in found["faults"]] == [2, 1, 1]


def test_check_of_another_kind_of_data_says_it_a_few_times(
    run: Run, rows: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(DataError, match="80 faulty"):
        run("check", rows)
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(":")[1] for line in lines[:5]] == ["1", "2", "3", "4", "5"]
    assert "it has no messages, so it is no conversation; `steerlm data import`" in lines[0]
    assert lines[5].startswith(f"{rows}: 75 more lines: it has no messages")
    assert lines[6:] == ["0 good, 80 faulty"]


def test_check_of_a_good_file(run: Run, tree: Path, tmp_path: Path) -> None:
    assert run("check", tree) == "2 good, 0 faulty\n"
    schema = tmp_path / "schema.yaml"
    schema.write_text("attributes: [{name: quality, high: 2, default: 2}]")
    with pytest.raises(DataError, match="1 faulty"):
        run("check", tree, "--schema", schema)


def test_a_torn_file_is_not_sent_where_it_fails_again(run: Run, tmp_path: Path) -> None:
    torn = tmp_path / "torn.jsonl.gz"
    write_conversations(torn, [Conversation(f"c{n}", (Message("user", f"{n * n}" * 50),)) for n in range(200)])
    torn.write_bytes(torn.read_bytes()[:-200])
    with pytest.raises(DataError, match="1 faulty; correct the file as a whole first") as told:
        run("check", torn)
    assert "--skip-faulty" not in str(told.value)
    with pytest.raises(DataError, match="damaged or cut short"):
        run("import", "jsonl", torn, "--skip-faulty", "--out", tmp_path / "good.jsonl")


def test_check_of_an_empty_and_of_a_torn_file(tmp_path: Path) -> None:
    empty = tmp_path / "empty.jsonl"
    empty.write_text("\n")
    with pytest.raises(DataError, match=r"empty.jsonl: the file holds no conversations"):
        check_file(empty, STEERLM)
    torn = tmp_path / "torn.jsonl.gz"
    write_conversations(torn, [Conversation(f"c{n}", (Message("user", f"{n * n}" * 50),)) for n in range(200)])
    torn.write_bytes(torn.read_bytes()[:-200])
    found = check_file(torn, STEERLM)
    assert found.good > 0
    assert found.faults[-1]["messages"][0].startswith("the compressed file is damaged or cut short")
    with pytest.raises(DataError, match="no such file"):
        check_file(tmp_path / "gone.jsonl", STEERLM)


def test_faults_exit_with_2_and_tell_stderr(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from steerlm.cli.main import run as run_steerlm

    (tmp_path / "in.jsonl").write_text("{}\n")
    assert run_steerlm(["data", "check", str(tmp_path / "in.jsonl")]) == 2
    captured = capsys.readouterr()
    assert "0 good, 1 faulty" in captured.out
    assert captured.err.startswith("error: ")


def test_show_draws_the_tree_and_keeps_hostile_text_harmless(run: Run, tree: Path) -> None:
    said = run("show", tree, "--id", "tree")
    assert "tree  somewhere" in said
    assert "system  be nice" in said
    assert "why is [bold]it[/bold] so?\\x1b[31m" in said
    assert "\x1b" not in said
    assert "1 assistant  quality 3, humor 0.50  predicted by f00d: quality 2.25" in said
    assert run("show", tree, "--index", 1) == said
    assert "0 user" in run("show", tree)


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--id", "x"], "no conversation 'x' among its 2"),
        (["--index", "2"], "no conversation at index 2 among its 2"),
        (["--index", "-1"], "must be 0 or more"),
        (["--index", "0", "--id", "x"], "give one of them"),
    ],
)
def test_show_of_what_is_not_there(run: Run, tree: Path, arguments: list[str], complaint: str) -> None:
    with pytest.raises(SteerLMError, match=complaint):
        run("show", tree, *arguments)


def trained_parts(said: str) -> list[str]:
    """What stands in ⟦ ⟧, without the lines and spaces of the tree that it hangs in."""
    body = said.split("\n", 2)[2]
    return [re.sub(r"[\s│├└─⏎]+", "", part) for part in re.findall(r"⟦(.*?)⟧", body, re.DOTALL)]


def test_show_tokens_marks_what_the_policy_learns(run: Run, tree: Path, tokenizer: Path) -> None:
    said = run("show", tree, "--id", "tree", "--tokens", "--tokenizer", tokenizer)
    legend, counts, *_ = said.splitlines()
    assert legend == "system marker label user response end ⟦with loss⟧"
    assert "<extra_id_2>quality:3,humor:0⏎" in said
    # The second response has no label, so it is not trained on.
    assert trained_parts(said) == ["because<extra_id_1>"]
    # b-e-c-a-u-s-e, the newline, and the end signal, which is one token.
    assert re.fullmatch(r"nemo, policy: \d+ tokens, 9 with loss", counts)
    assert "quality:2⏎" in run(
        "show", tree, "--id", "tree", "--tokens", "--tokenizer", tokenizer, "--labels", "predicted"
    )


def test_show_tokens_marks_where_the_attribute_model_scores(run: Run, tree: Path, tokenizer: Path) -> None:
    flags = ["--tokens", "--tokenizer", tokenizer, "--task", "score"]
    said = run("show", tree, "--id", "tree", *flags)
    assert trained_parts(said) == ["<extra_id_2>"]
    assert "quality" not in said
    assert trained_parts(run("show", tree, "--id", "tree", *flags, "--dialect", "chatml")) == ["<|im_end|>"]


def test_a_trained_model_brings_its_own_dialect_schema_and_task(
    run: Run, tree: Path, tokenizer: Path, tmp_path: Path
) -> None:
    import shutil

    folder = tmp_path / "model"
    shutil.copytree(tokenizer, folder)
    ModelInfo("attribute-model", STEERLM, "llama3", STEERLM.defaults, fingerprint="f").save(folder)
    assert renderer_for(str(folder), None, STEERLM).dialect.name == "llama3"
    assert "llama3, score: " in run("show", tree, "--id", "tree", "--tokens", "--tokenizer", folder)
    with pytest.raises(ConfigError, match="was trained with the dialect llama3"):
        run("show", tree, "--id", "tree", "--tokens", "--tokenizer", folder, "--dialect", "nemo")


def test_characters_of_several_tokens_are_shown_whole(tokenizer: Path) -> None:
    loaded: Any = renderer_for(str(tokenizer), None, STEERLM).tokenizer
    text = "ä🙂<extra_id_1>x quality:4\n"
    ids = tuple(loaded(text, add_special_tokens=False)["input_ids"])
    texts = token_texts(loaded, ids)
    assert "".join(texts) == text
    assert texts == ["", "ä", "", "", "", "🙂", "<extra_id_1>", "x", " ", "quality:4", "\n"]
    # A character that is cut off is shown as what it is.
    assert token_texts(loaded, ids[:3])[1:] == ["ä", "\ufffd"]
