"""The manifest of a checkpoint: its files with their sizes and digests, by which damage is told from a faulty disk."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from steerlm import __version__
from steerlm.errors import TrainingError
from steerlm.files import sha256, write_json

START_OVER = "start over with --resume never (of quickstart: --fresh)"
_NAME = "manifest.json"
_FORMAT = 3
# What reading a file that is missing or torn raises; any other `OSError` is of the disk, and says nothing of the file.
TORN = (FileNotFoundError, NotADirectoryError, IsADirectoryError, ValueError, KeyError, TypeError)


def write_manifest(path: Path, key: Any, progress: dict[str, Any], files: Mapping[str, tuple[int, str]]) -> None:
    """Seal the checkpoint in directory `path`, of the run `key`, whose files have these sizes and digests."""
    manifest = {"format": _FORMAT, "version": __version__, "key": key, "progress": progress, "files": dict(files)}
    write_json(path / _NAME, manifest)


def read_manifest(path: Path) -> Any:
    """What is written of a checkpoint. Raises one of `TORN` where it is damaged, and another `OSError` where unread."""
    return json.loads((path / _NAME).read_text(encoding="utf-8"))


def listed_files(path: Path) -> dict[str, tuple[int, str]] | str:
    """The files of a checkpoint with their sizes and digests, or what is wrong with its manifest.

    Raises `TrainingError` where another version wrote it, and where it cannot be read.
    """
    try:
        manifest = read_manifest(path)
        if isinstance(manifest["format"], int) and manifest["format"] != _FORMAT:
            raise TrainingError(
                f"{path} was written by another version of steerlm (its format is {manifest['format']}, here it is "
                f"{_FORMAT}); go on with that version, choose another --out, or {START_OVER}"
            )
        return {name: (int(size), str(digest)) for name, (size, digest) in manifest["files"].items()}
    except TORN as error:
        return f"{_NAME}: {error}"
    except OSError as error:
        raise _unreadable(path / _NAME, error) from error


def fault_of(file: Path, size: int, digest: str) -> str | None:
    """What is wrong with a file of a checkpoint, or None. Raises `TrainingError` where it cannot be read."""
    try:
        found = file.stat().st_size
        if found != size:
            return f"{file.name} has {found} of {size} bytes"
        return None if sha256(file) == digest else f"{file.name} does not have its digest"
    except FileNotFoundError:
        return f"{file.name} is missing"
    except TORN as error:
        return f"{file.name}: {error}"
    except OSError as error:
        raise _unreadable(file, error) from error


def _unreadable(file: Path, error: OSError) -> TrainingError:
    return TrainingError(
        f"{file} cannot be read ({error.strerror}), which does not say that it is damaged; mend the disk or the "
        f"permissions and give the same command again, or move {file.parent.name} away to go on without it"
    )


def seal_of(file: Path) -> tuple[int, str]:
    """Size and digest."""
    return file.stat().st_size, sha256(file)
