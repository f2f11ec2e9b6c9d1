"""Annotate a conversation file: stream it in, score it window by window, keep a journal, write the result whole."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from rich.console import Console

from steerlm import __version__
from steerlm.annotation.journal import Journal
from steerlm.annotation.progress import Extent, Watch
from steerlm.annotation.report import AnnotationReport, Totals
from steerlm.annotation.scorer import Scorer, on_scale
from steerlm.annotation.settings import AnnotateSettings
from steerlm.attributes import STEERLM, Schema
from steerlm.conversation import Conversation
from steerlm.errors import ConfigError, DataError, ModelError, SchemaError
from steerlm.files import Row, faulty, read_rows, row_faults, row_id, sha256, write_json, write_jsonl
from steerlm.models.load import SteerModel
from steerlm.provenance import environment


def annotate(
    data: str | Path,
    out: str | Path,
    model: SteerModel,
    settings: AnnotateSettings | None = None,
    *,
    schema: Schema | None = None,
    fresh: bool = False,
    console: Console | None = None,
) -> AnnotationReport:
    """Write `out`: the conversations of `data` with `predicted` and `predicted_by` on every assistant message.

    Human ratings stay as they are; predictions of another model are replaced. Values are the model's scores with
    four decimals, clamped to the attribute's scale. A killed run goes on where it was when called again, and
    yields the same bytes; a finished one is not repeated. `schema` declares the attributes of the data's own
    ratings; without it they are the nine of SteerLM and the model's. `fresh` forgets all earlier work. Beside
    `out` stand `.report.json` (counts and provenance), `.rejects.jsonl` (malformed lines, if there are any), and
    `.journal` until the run is through.

    Raises `DataError` for unusable data, a journal of another run or a full disk, `ModelError` for a model that
    is no saved attribute model, `SchemaError` where schema and model disagree, `ConfigError` for bad options.
    """
    return _Run(Path(data), Path(out), model, settings or AnnotateSettings(), schema).run(fresh, console)


@dataclass
class _Window:
    """Consecutive rows of the input that are scored together. `start` and `stop` are its place in the input."""

    start: float
    stop: float
    line: int = 0
    conversations: list[Conversation] = field(default_factory=list)
    rejects: list[dict[str, Any]] = field(default_factory=list)
    text_bytes: int = 0

    def add(self, row: Row, faults: list[str], schema: Schema) -> None:
        self.line = row.line
        if faults:
            name = row_id(row)
            name = _printable(name) if isinstance(name, str) else None
            self.rejects.append({"line": row.line, "conversation": name, "faults": faults, "raw": _raw_text(row)})
            self.text_bytes += len(row.raw)
            return
        conversation = Conversation.from_dict(row.record, schema)
        self.conversations.append(conversation)
        self.text_bytes += sum(len(message.text.encode()) for message in conversation.messages)

    @property
    def size(self) -> int:
        return len(self.conversations) + len(self.rejects)


class _Run:
    def __init__(
        self, data: Path, out: Path, model: SteerModel, settings: AnnotateSettings, schema: Schema | None
    ) -> None:
        self.data = data
        self.out = out
        self.settings = settings
        self.scorer = Scorer(model, settings)
        self.fingerprint = model.info.fingerprint
        if not self.fingerprint:
            raise ModelError("the attribute model has no fingerprint yet; save it first, and use what save() returns")
        self.schema = data_schema(model.schema, schema)
        _check_paths(data, out)
        self.rejects = out.with_name(f"{out.name}.rejects.jsonl")
        self.record = out.with_name(f"{out.name}.report.json")
        self.journal = out.with_name(f"{out.name}.journal")

    def run(self, fresh: bool, console: Console | None) -> AnnotationReport:
        began = time.monotonic()
        key = self._key()
        if not fresh and (totals := self._finished(key)) is not None:
            return self._report(totals, totals, began)
        with Journal(self.journal, key, fresh) as journal:
            before = journal.totals
            with Watch(f"annotate {self.data.name}", Extent(self.data).total, console) as watch:
                for window in self._windows(before.line):
                    self._score(window, journal, watch)
            with self._writing(self.out, journal):
                self._finish(journal, key)
            return self._report(journal.totals, before, began)

    def _key(self) -> dict[str, Any]:
        """All that the bytes of the result depend on."""
        return {
            "input": sha256(self.data),
            "model": self.fingerprint,
            "schema": self.schema.to_list(),
            "context": self.scorer.context,
            "pack_tokens": self.scorer.pack_tokens,
            "window_bytes": self.settings.window_bytes,
            "window_conversations": self.settings.window_conversations,
            "precision": str(self.scorer.dtype).removeprefix("torch."),
            "device": self.scorer.model.device.type,
            "steerlm": __version__,
        }

    def _finished(self, key: dict[str, Any]) -> Totals | None:
        """The totals of an earlier run that made the very file that is there; None where there is none."""
        if self.journal.exists() or not (self.record.is_file() and self.out.is_file()):
            return None
        try:
            record = json.loads(self.record.read_text(encoding="utf-8"))
            totals = Totals.from_dict(record["totals"])
            made_here = record["key"] == key and record["sha256"] == sha256(self.out)
        except (ValueError, KeyError, TypeError):
            return None
        complete = made_here and self.rejects.is_file() == bool(totals.rejected)
        return totals if complete and not (totals.rejected and self.settings.strict) else None

    def _windows(self, done: int) -> Iterator[_Window]:
        """The windows after line `done`. Their limits depend on the rows alone, never on where a run began."""
        extent = Extent(self.data)
        seen: dict[str, int] = {}
        at = 0.0
        window: _Window | None = None
        for row in read_rows(self.data):
            faults = [_printable(fault) for fault in row_faults(row, self.schema, seen)]
            if faults and self.settings.strict:
                raise faulty(self.data, row, faults)
            start, at = at, at + extent.of(row)
            if row.line <= done:
                continue
            window = window or _Window(start, start)
            window.add(row, faults, self.schema)
            window.stop = at
            if window.text_bytes >= self.settings.window_bytes or window.size >= self.settings.window_conversations:
                yield window
                window = None
        if window:
            yield window

    def _score(self, window: _Window, journal: Journal, watch: Watch) -> None:
        watch.begin(window.start)
        scored = self.scorer.score(window.conversations, watch.pack)
        results = [
            self._annotated(conversation, values)
            for conversation, values in zip(window.conversations, scored.values, strict=True)
        ]
        counts = Totals(
            line=window.line,
            conversations=len(window.conversations),
            responses=sum(len(conversation.responses) for conversation in window.conversations),
            scored=sum(map(len, scored.values)),
            truncated=scored.report.truncated,
            dropped=scored.report.dropped,
            rejected=len(window.rejects),
            tokens=scored.report.tokens,
        )
        with self._writing(self.journal, journal):
            journal.append(results, window.rejects, journal.totals + counts)
        watch.reached(window.stop)

    def _annotated(self, conversation: Conversation, values: dict[int, dict[str, float]]) -> dict[str, Any]:
        model_schema = self.scorer.model.schema
        messages = list(conversation.messages)
        for index in conversation.responses:
            predicted = on_scale(model_schema, values[index]) if index in values else {}
            messages[index] = replace(
                messages[index], predicted=predicted, predicted_by=self.fingerprint if predicted else None
            )
        return replace(conversation, messages=tuple(messages)).to_dict()

    def _finish(self, journal: Journal, key: dict[str, Any]) -> None:
        """Publish the journal's content. Killed in between, the next run does it again from the same journal."""
        totals = journal.totals
        if totals.rejected:
            write_jsonl(self.rejects, journal.rejects())
        else:
            self.rejects.unlink(missing_ok=True)
        if not totals.conversations:
            first = next(journal.rejects(), None)
            journal.remove()
            if first is None:
                raise DataError(f"{self.data}: the file holds no conversations")
            raise DataError(
                f"{self.data}: no line of the file is a conversation; line {first['line']}: "
                f"{'; '.join(first['faults'])} (all {totals.rejected} in {self.rejects}). "
                "Other formats are brought into ours by `steerlm data import`"
            )
        write_jsonl(self.out, journal.results())
        write_json(
            self.record,
            {"totals": totals.to_dict(), "sha256": sha256(self.out), "key": key, "environment": environment()},
        )
        journal.remove()

    @contextmanager
    def _writing(self, path: Path, journal: Journal) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise DataError(
                f"{error.filename or path}: cannot be written: {error.strerror or error}. Make room or mend it, and "
                f"run the same command again: {journal.totals.conversations} conversations are safe in {self.journal}"
            ) from error

    def _report(self, totals: Totals, before: Totals, began: float) -> AnnotationReport:
        here = {name: getattr(totals, name) - getattr(before, name) for name in Totals.__dataclass_fields__}
        return AnnotationReport(
            data=self.data,
            out=self.out,
            model=self.fingerprint,
            totals=totals,
            resumed=before.conversations,
            seconds=time.monotonic() - began,
            here=Totals(**here),
            rejects=self.rejects if totals.rejected else None,
        )


def data_schema(model: Schema, declared: Schema | None) -> Schema:
    """The attributes that data may carry: those declared (else SteerLM's nine) and those of the model.

    Raises `SchemaError` where a declared attribute has another scale than the model's.
    """
    for item in declared or ():
        if item.name in model and (item.low, item.high) != (model[item.name].low, model[item.name].high):
            raise SchemaError(
                f"the schema declares {item.name} on {item.low}..{item.high}, the model predicts it on "
                f"{model[item.name].low}..{model[item.name].high}; use a model trained with this schema"
            )
    others = (item for item in declared or STEERLM if item.name not in model)
    return Schema((*model, *others))


def _check_paths(data: Path, out: Path) -> None:
    if not data.is_file():
        raise DataError(f"{data}: no such file")
    if out.suffix == ".parquet":
        raise ConfigError(f"--out {out}: the result is JSONL; name it .jsonl, .jsonl.gz or .jsonl.zst")
    if out.exists() and not out.is_file():
        what = "a directory; name a file in it" if out.is_dir() else "no ordinary file, and would be replaced by one"
        raise ConfigError(f"--out {out} is {what}")
    if out.exists() and os.path.samefile(data, out):
        raise ConfigError(f"--out {out} is the input itself; choose another file")


def _printable(text: str) -> str:
    """Faults may quote half of a surrogate pair, which neither a file nor a terminal can take."""
    return text.encode("utf-8", errors="backslashreplace").decode("utf-8")


def _raw_text(row: Row) -> str:
    """The malformed line as it was; bytes that are no UTF-8 as backslash escapes."""
    if row.raw:
        return row.raw.decode("utf-8", errors="backslashreplace").rstrip("\r\n")
    return json.dumps(row.record, ensure_ascii=False, default=str)
