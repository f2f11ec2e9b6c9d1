"""The data of a training: read once, checked, and left on the disk. Memory holds some 30 bytes a conversation."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from array import array
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, overload

import numpy as np
from numpy.typing import NDArray

from steerlm.attributes import Schema
from steerlm.conversation import Conversation
from steerlm.errors import DataError
from steerlm.files import json_line, parse_conversation, read_rows
from steerlm.sources.split import is_held_out
from steerlm.training.config import PolicySettings, TrainSettings
from steerlm.training.survey import Survey


class Library:
    """Checked conversation files, from which any conversation can be parsed again by its number.

    `.jsonl` files are read in place; compressed ones and Parquet are spooled to a temporary file in `spool`.
    """

    def __init__(self, schema: Schema, spool: Path) -> None:
        self.schema = schema
        self.spool = spool
        self.paths: list[Path] = []
        self._streams: list[IO[bytes]] = []
        self._file = array("H")
        self._start = array("Q")
        self._length = array("I")
        self._name = array("Q")
        """A 64-bit digest of each conversation's id."""
        self._content = array("Q")
        """A 64-bit digest of each conversation's bytes."""

    def __len__(self) -> int:
        return len(self._file)

    def close(self) -> None:
        for stream in self._streams:
            stream.close()

    def add(self, path: Path, watch: Callable[[int, Conversation], None]) -> str:
        """Read a file to its end, telling `watch` of every conversation. Returns the digest of its contents.

        Raises `DataError` at the first faulty line, for an id that was used before, and for a file without any.
        """
        before, number = len(self), len(self.paths)
        self.paths.append(path)
        in_place = path.suffix == ".jsonl"
        stream = path.open("rb") if in_place and path.is_file() else self._temporary()
        self._streams.append(stream)
        digest = hashlib.sha256()
        for row in read_rows(path):
            conversation = parse_conversation(path, row, self.schema)
            raw = row.raw or json_line(row.record)
            digest.update(raw)
            start = row.offset
            if not in_place:
                start = stream.tell()
                stream.write(raw)
            self._file.append(number)
            self._start.append(start)
            self._length.append(len(raw))
            self._name.append(_digest(conversation.id.encode()))
            self._content.append(_digest(raw))
            watch(len(self) - 1, conversation)
        stream.flush()
        if len(self) == before:
            raise DataError(f"{path}: the file holds no conversations")
        self._require_unique()
        return digest.hexdigest()

    def _temporary(self) -> IO[bytes]:
        self.spool.mkdir(parents=True, exist_ok=True)
        return tempfile.TemporaryFile(dir=self.spool)

    def _require_unique(self) -> None:
        names = np.frombuffer(self._name, dtype=np.uint64)
        order = np.argsort(names, kind="stable")
        again = np.flatnonzero(names[order][1:] == names[order][:-1])
        for place in again:
            first, second = int(order[place]), int(order[place + 1])
            if (name := self.parse(first).id) == self.parse(second).id:
                raise DataError(
                    f"{self.path_of(second)}: conversation {name!r} is in {self.path_of(first)} too; ids must be unique"
                )

    def path_of(self, number: int) -> Path:
        return self.paths[self._file[number]]

    def parse(self, number: int) -> Conversation:
        """Conversation `number`, read from the disk anew; safe from several threads."""
        stream = self._streams[self._file[number]]
        raw = os.pread(stream.fileno(), self._length[number], self._start[number])
        if _digest(raw) != self._content[number]:
            raise DataError(
                f"{self.path_of(number)}: changed while it was in use: at byte {self._start[number]} there was "
                "something else before; leave data alone while a training runs, and start it again"
            )
        return Conversation.from_dict(json.loads(raw), self.schema)


def _digest(content: bytes) -> int:
    return int.from_bytes(hashlib.blake2b(content, digest_size=8).digest())


class Corpus(Sequence[Conversation]):
    """Some conversations of a library, parsed when asked for."""

    def __init__(self, library: Library, numbers: NDArray[np.int64]) -> None:
        self._library = library
        self._numbers = numbers

    def __len__(self) -> int:
        return len(self._numbers)

    @overload
    def __getitem__(self, index: int) -> Conversation: ...
    @overload
    def __getitem__(self, index: slice) -> Corpus: ...
    def __getitem__(self, index: int | slice) -> Conversation | Corpus:
        if isinstance(index, slice):
            return Corpus(self._library, self._numbers[index])
        return self._library.parse(int(self._numbers[index]))

    def __iter__(self) -> Iterator[Conversation]:
        return (self._library.parse(int(number)) for number in self._numbers)


@dataclass(frozen=True)
class TrainingData:
    """Conversations to learn from and held-out ones, a digest of their files' contents, and what was seen in the
    former.
    """

    train: Sequence[Conversation]
    held_out: Sequence[Conversation]
    digest: str
    survey: Survey


@contextmanager
def training_data(settings: TrainSettings, schema: Schema) -> Iterator[TrainingData]:
    """Read the files of the settings once, and hold out a share where no validation files are named. The
    conversations can be had for as long as the block runs.

    Raises `DataError` for faulty or missing data, and where nothing is left to train on.
    """
    if not settings.data:
        raise DataError("no data to train on; name conversation files with --data")
    with closing(Library(schema, settings.out)) as library:
        yield _read(library, settings)


def _read(library: Library, settings: TrainSettings) -> TrainingData:
    survey = Survey(settings.seed, settings.labels if isinstance(settings, PolicySettings) else "ratings")
    train, held_out = array("q"), array("q")
    fraction = 0.0 if settings.validation else settings.validation_fraction

    def to_learn(number: int, conversation: Conversation) -> None:
        if is_held_out(conversation.id, fraction, settings.seed):
            held_out.append(number)
        else:
            train.append(number)
            survey.add(conversation)

    digests = [library.add(path, to_learn) for path in settings.data]
    digests += ["held out"]
    digests += [library.add(path, lambda number, _: held_out.append(number)) for path in settings.validation]
    if not train:
        raise DataError("holding out left nothing to train on; add data or lower validation_fraction")
    numbers = np.array(held_out, dtype=np.int64)
    if len(numbers) > settings.validation_limit:
        chosen = np.random.default_rng(settings.seed).permutation(len(numbers))[: settings.validation_limit]
        numbers = numbers[np.sort(chosen)]
    digest = hashlib.sha256("".join(digests).encode()).hexdigest()
    return TrainingData(Corpus(library, np.array(train, dtype=np.int64)), Corpus(library, numbers), digest, survey)
