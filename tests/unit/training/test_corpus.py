"""The data of a training: the conversations of the files, wherever they are read from, and what is refused."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest

from steerlm.attributes import STEERLM
from steerlm.conversation import Conversation
from steerlm.errors import DataError
from steerlm.files import write_conversations
from steerlm.sources.split import split_conversations
from steerlm.training.config import PolicySettings
from steerlm.training.corpus import Corpus, Library, training_data
from steerlm.training.survey import Survey
from strategies import random_conversation

SUFFIXES = [".jsonl", ".jsonl.gz", ".jsonl.zst", ".parquet"]


@pytest.fixture
def made() -> list[Conversation]:
    generator = random.Random(7)
    return [random_conversation(generator, f"Gespräch-{k} \U0001f30a", generator.randint(2, 6)) for k in range(30)]


@pytest.fixture
def library(tmp_path: Path) -> Iterator[Library]:
    with closing(Library(STEERLM, tmp_path / "spool")) as opened:
        yield opened


def write(path: Path, conversations: list[Conversation]) -> Path:
    if path.suffix != ".parquet":
        write_conversations(path, conversations)
    else:
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist([item.to_dict() for item in conversations]), path)
    return path


def nothing(number: int, conversation: Conversation) -> None:
    pass


def settings(tmp_path: Path, *data: Path, **changes: Any) -> PolicySettings:
    return PolicySettings(**{"data": list(data), "out": tmp_path / "out", **changes})


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_every_form_gives_the_same_conversations(
    tmp_path: Path, library: Library, made: list[Conversation], suffix: str
) -> None:
    seen = []
    library.add(write(tmp_path / f"a{suffix}", made), lambda number, item: seen.append((number, item)))
    assert seen == list(enumerate(made))
    assert len(library) == len(made)
    order = random.Random(0).sample(range(len(made)), len(made))
    assert [library.parse(number) for number in order] == [made[number] for number in order]
    # What is not read in place lies in a file without a name, gone with the process.
    assert (tmp_path / "spool").exists() == (suffix != ".jsonl")
    assert not (tmp_path / "spool").exists() or not list((tmp_path / "spool").iterdir())


@pytest.mark.parametrize("newline", ["\n", "\r\n"])
def test_places_of_lines_between_blank_ones(
    tmp_path: Path, library: Library, made: list[Conversation], newline: str
) -> None:
    path = tmp_path / "a.jsonl"
    lines = [json.dumps(item.to_dict(), ensure_ascii=bool(k % 2), indent=None) for k, item in enumerate(made)]
    text = f"{newline} {newline}" + f"{newline}{newline}\t ".join(lines)  # without an end to the last line
    path.write_bytes(text.encode())
    library.add(path, nothing)
    assert [library.parse(number) for number in range(len(library))] == made


def test_several_files_are_one_library(tmp_path: Path, library: Library, made: list[Conversation]) -> None:
    parts = np.array_split(np.arange(len(made)), len(SUFFIXES))
    for suffix, part in zip(SUFFIXES, parts, strict=True):
        library.add(write(tmp_path / f"a{suffix}", [made[k] for k in part]), nothing)
    assert [library.parse(number) for number in range(len(library))] == made
    assert [library.path_of(int(part[0])).name for part in parts] == [f"a{suffix}" for suffix in SUFFIXES]


def test_an_id_that_is_used_twice_in_a_file(tmp_path: Path, library: Library, made: list[Conversation]) -> None:
    path = write(tmp_path / "a.jsonl", [*made, made[4]])
    with pytest.raises(DataError, match=rf"a\.jsonl: conversation {made[4].id!r} is in .*a\.jsonl too"):
        library.add(path, nothing)


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_an_id_that_is_used_in_two_files(
    tmp_path: Path, library: Library, made: list[Conversation], suffix: str
) -> None:
    library.add(write(tmp_path / f"first{suffix}", made[:20]), nothing)
    second = write(tmp_path / "second.jsonl", made[19:])
    with pytest.raises(DataError) as caught:
        library.add(second, nothing)
    assert str(caught.value).startswith(f"{second}: conversation {made[19].id!r} is in {tmp_path / f'first{suffix}'}")


@pytest.mark.parametrize("suffix", [".jsonl", ".jsonl.gz"])
def test_a_faulty_line_is_named(tmp_path: Path, library: Library, made: list[Conversation], suffix: str) -> None:
    path = write(tmp_path / f"a{suffix}", made)
    plain = tmp_path / "plain.jsonl"
    write_conversations(plain, made[:2])
    plain.write_bytes(plain.read_bytes() + b'\n{"id": "x", "messages": [\n')
    library.add(path, nothing)
    with pytest.raises(DataError, match=r"plain\.jsonl: line 4: .*not valid JSON"):
        library.add(plain, nothing)


def test_a_conversation_that_breaks_the_schema_is_named(tmp_path: Path, library: Library) -> None:
    record = {"id": "x", "messages": [{"role": "user", "text": "a"}, {"role": "assistant", "text": "b", "parent": 0}]}
    record["messages"][1]["ratings"] = {"humor": 9}  # type: ignore[index]
    (tmp_path / "a.jsonl").write_text(json.dumps(record))
    with pytest.raises(DataError, match=r"a\.jsonl: line 1: conversation 'x': .*humor"):
        library.add(tmp_path / "a.jsonl", nothing)


def test_a_file_without_conversations_and_no_file(tmp_path: Path, library: Library) -> None:
    (tmp_path / "a.jsonl").write_text("\n\n")
    with pytest.raises(DataError, match=r"a\.jsonl: the file holds no conversations"):
        library.add(tmp_path / "a.jsonl", nothing)
    for name in ("b.jsonl", "b.jsonl.gz"):
        with pytest.raises(DataError, match="no such file"):
            library.add(tmp_path / name, nothing)


@pytest.mark.parametrize(
    "change",
    [
        lambda raw: raw[: len(raw) // 2],
        lambda raw: b"",
        lambda raw: b"[0]" + raw[3:],
        lambda raw: b"{}" + b" " * (len(raw) - 2),
        lambda raw: b'{"id":"x"}' + b" " * (len(raw) - 10),
        lambda raw: b'{"id":"x","messages":7}' + b" " * (len(raw) - 23),
        lambda raw: b"7" + b" " * (len(raw) - 1),
        lambda raw: b"\xff" * len(raw),
        lambda raw: raw.replace(b'"role":"assistant"', b'"role":"assassins"'),
        lambda raw: raw.replace(b" ", b"_"),  # a valid conversation of the same length
    ],
)
def test_a_file_that_changes_meanwhile(tmp_path: Path, library: Library, made: list[Conversation], change: Any) -> None:
    path = write(tmp_path / "a.jsonl", made)
    library.add(path, nothing)
    with path.open("r+b") as stream:
        raw = stream.read()
        stream.seek(0)
        stream.truncate()
        stream.write(change(raw))
    with pytest.raises(DataError, match=r"a\.jsonl: changed while it was in use: at byte \d+"):
        list(Corpus(library, np.arange(len(library))))


def test_another_conversation_in_the_place_of_one(tmp_path: Path, library: Library, made: list[Conversation]) -> None:
    """One of the same length, as after sorting a file of uniform records."""
    path = tmp_path / "a.jsonl"
    text = write(path, made[:1]).read_bytes()
    twin = text.replace(b"Gespr\xc3\xa4ch-0", b"Gespr\xc3\xa4ch-1")
    path.write_bytes(text + twin)
    library.add(path, nothing)
    path.write_bytes(twin + text)
    with pytest.raises(DataError, match="changed while it was in use"):
        library.parse(0)


def test_a_file_that_is_replaced_is_still_read_as_it_was(
    tmp_path: Path, library: Library, made: list[Conversation]
) -> None:
    """As by `write_conversations`, which renames: the open file lives on."""
    path = write(tmp_path / "a.jsonl", made[:20])
    library.add(path, nothing)
    write(path, made[20:])
    assert [library.parse(number) for number in range(20)] == made[:20]


def test_threads_parse_at_the_same_time(tmp_path: Path, library: Library, made: list[Conversation]) -> None:
    library.add(write(tmp_path / "a.jsonl", made[:15]), nothing)
    library.add(write(tmp_path / "b.jsonl.gz", made[15:]), nothing)
    numbers = random.Random(1).choices(range(len(made)), k=600)
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(library.parse, numbers)) == [made[number] for number in numbers]


def test_a_corpus_is_a_sequence(tmp_path: Path, library: Library, made: list[Conversation]) -> None:
    library.add(write(tmp_path / "a.jsonl", made), nothing)
    corpus = Corpus(library, np.array([3, 5, 8]))
    assert len(corpus) == 3
    assert list(corpus) == [made[3], made[5], made[8]]
    assert (corpus[-1], list(corpus[1:])) == (made[8], [made[5], made[8]])
    with pytest.raises(IndexError):
        corpus[3]


@pytest.mark.parametrize("seed", [0, 5])
def test_the_split_is_that_of_the_sources(tmp_path: Path, made: list[Conversation], seed: int) -> None:
    first, second = write(tmp_path / "a.jsonl", made[:20]), write(tmp_path / "b.jsonl.gz", made[20:])
    kept, held_out = split_conversations(made, 0.3, seed)
    assert 0 < len(held_out) < len(kept)
    with training_data(settings(tmp_path, first, second, seed=seed, validation_fraction=0.3), STEERLM) as data:
        assert list(data.train) == kept
        assert list(data.held_out) == held_out
        surveyed = Survey.of(kept, seed)
        assert (data.survey.conversations, data.survey.responses) == (surveyed.conversations, surveyed.responses)
        assert data.survey.mean_ratings == surveyed.mean_ratings


def test_validation_files_are_held_out_in_place_of_a_share(tmp_path: Path, made: list[Conversation]) -> None:
    data_file, validation = write(tmp_path / "a.jsonl", made[:20]), write(tmp_path / "b.jsonl", made[20:])
    given = settings(tmp_path, data_file, validation=[validation], validation_fraction=0.5)
    with training_data(given, STEERLM) as data:
        assert list(data.train) == made[:20]
        assert list(data.held_out) == made[20:]
        assert data.survey.conversations == 20


def test_the_same_conversation_in_data_and_validation_is_refused(tmp_path: Path, made: list[Conversation]) -> None:
    data_file, validation = write(tmp_path / "a.jsonl", made[:20]), write(tmp_path / "b.jsonl", made[19:])
    with (
        pytest.raises(DataError, match=r"b\.jsonl: .*a\.jsonl too"),
        training_data(settings(tmp_path, data_file, validation=[validation]), STEERLM),
    ):
        pass


def test_the_limit_of_validation_chooses_by_the_seed_and_keeps_the_order(
    tmp_path: Path, made: list[Conversation]
) -> None:
    data_file, validation = write(tmp_path / "a.jsonl", made[:5]), write(tmp_path / "b.jsonl", made[5:])
    chosen = []
    for seed in (0, 0, 1):
        given = settings(tmp_path, data_file, validation=[validation], validation_limit=6, seed=seed)
        with training_data(given, STEERLM) as data:
            assert len(data.train) == 5
            chosen.append([made.index(item) for item in data.held_out])
    assert chosen[0] == chosen[1] != chosen[2]
    for numbers in chosen:
        assert len(numbers) == 6
        assert numbers == sorted(set(numbers))
        assert min(numbers) >= 5


def digest_of(given: PolicySettings) -> str:
    with training_data(given, STEERLM) as data:
        return data.digest


def test_the_digest_is_one_of_contents(tmp_path: Path, made: list[Conversation]) -> None:
    plain = digest_of(settings(tmp_path, write(tmp_path / "a.jsonl", made)))
    for suffix in (".jsonl.gz", ".jsonl.zst"):
        assert digest_of(settings(tmp_path, write(tmp_path / f"other{suffix}", made))) == plain
    halves = write(tmp_path / "h1.jsonl", made[:15]), write(tmp_path / "h2.jsonl", made[15:])
    others = [
        settings(tmp_path, write(tmp_path / "fewer.jsonl", made[:-1])),
        settings(tmp_path, write(tmp_path / "order.jsonl", made[::-1])),
        settings(tmp_path, *halves),
        settings(tmp_path, *halves[::-1]),
        settings(tmp_path, halves[0], validation=[halves[1]]),
    ]
    digests = [digest_of(given) for given in others]
    assert len({plain, *digests}) == 1 + len(others)


def test_nothing_to_train_on(tmp_path: Path, made: list[Conversation]) -> None:
    with (
        pytest.raises(DataError, match="name conversation files with --data"),
        training_data(settings(tmp_path), STEERLM),
    ):
        pass
    _, held_out = split_conversations(made, 0.3, 0)
    path = write(tmp_path / "a.jsonl", held_out)
    given = settings(tmp_path, path, validation_fraction=0.3)
    with pytest.raises(DataError, match="left nothing to train on"), training_data(given, STEERLM):
        pass
