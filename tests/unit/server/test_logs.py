"""What libraries log, as lines of the server's log, which must not quote what clients send."""

from __future__ import annotations

import io
import json
import linecache
import logging
import re
from typing import Any

import pytest

from steerlm.server.logs import LogHandler, RequestLog

SECRET = "a secret of the prompt"


@pytest.fixture
def stream() -> io.StringIO:
    return io.StringIO()


@pytest.fixture
def library(stream: io.StringIO) -> logging.Logger:
    """A library's logger, of which all goes into `stream` and nowhere else."""
    logger = logging.Logger("a.library")
    logger.addHandler(LogHandler(RequestLog(stream)))
    return logger


def read(stream: io.StringIO) -> dict[str, Any]:
    """The one line there is, without its time."""
    [line] = stream.getvalue().splitlines()
    record: dict[str, Any] = json.loads(line)
    del record["time"]
    return record


def fail(text: str) -> None:
    raise ValueError(text)


def test_of_an_error_only_its_type_and_its_place_are_kept(stream: io.StringIO, library: logging.Logger) -> None:
    try:
        fail(SECRET)
    except ValueError:
        library.exception("failed over %s", SECRET)
    assert "secret" not in stream.getvalue()
    assert "Traceback" not in stream.getvalue()
    line = read(stream)
    places = line.pop("error")
    assert line == {"event": "log", "level": "error", "logger": "a.library"}
    found = re.fullmatch(r"ValueError at (.+):(\d+) < (.+):(\d+)", places)
    assert found, places
    assert {found[1], found[3]} == {__file__}
    told = [linecache.getline(__file__, int(number)).strip() for number in (found[2], found[4])]
    assert told == ["raise ValueError(text)", "fail(SECRET)"]


def test_an_error_that_was_caught_from_another_tells_of_neither(stream: io.StringIO, library: logging.Logger) -> None:
    try:
        try:
            fail(SECRET)
        except ValueError as error:
            raise RuntimeError(f"it said: {error}") from error
    except RuntimeError:
        library.warning("went on", exc_info=True)
    assert "secret" not in stream.getvalue()
    line = read(stream)
    assert line["level"] == "warning"
    assert line["error"].startswith(f"RuntimeError at {__file__}:")


@pytest.mark.parametrize("asked", [False, True])
def test_a_message_without_an_error_is_kept(stream: io.StringIO, library: logging.Logger, asked: bool) -> None:
    """Also where that of an error is asked for, of which there is none."""
    library.warning("%d of %d\n{}", 2, 3, exc_info=asked)
    assert read(stream) == {"event": "log", "level": "warning", "logger": "a.library", "message": "2 of 3\n{}"}


def test_a_message_that_does_not_fit_its_values_is_no_error_of_who_logs(
    stream: io.StringIO, library: logging.Logger
) -> None:
    library.warning("%d tokens", SECRET)
    assert "secret" not in stream.getvalue()
    assert read(stream)["error"].startswith(f"TypeError at {__file__}:")
