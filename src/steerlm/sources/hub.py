"""Data sets of the Hugging Face hub, fetched as files with `huggingface_hub` and cached where it keeps them."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from steerlm.errors import DataError

PREFIX = "hub:"
_REFERENCE = re.compile(
    r"hub:(?P<repository>[\w.-]+/[\w.-]+)(?:@(?P<revision>[^/:@]+))?(?::(?P<split>\w+)|/(?P<file>.+))?"
)
_SUFFIXES = (".jsonl", ".jsonl.gz", ".jsonl.zst", ".parquet")
_FORM = "hub:OWNER/NAME, with @REVISION and then :SPLIT or /FILE where wanted"


@dataclass(frozen=True, slots=True)
class HubReference:
    """A data set, or one file of it, at a revision (None is the newest)."""

    repository: str
    revision: str | None = None
    split: str = "train"
    file: str | None = None


def parse_reference(text: str) -> HubReference:
    """Read `hub:OWNER/NAME[@REVISION][:SPLIT or /FILE]`; without a split it is `train`."""
    match = _REFERENCE.fullmatch(text)
    if not match:
        raise DataError(f"{text!r} is no reference to the hub; write {_FORM}")
    found = match.groupdict()
    return HubReference(found["repository"], found["revision"], found["split"] or "train", found["file"])


def fetch(text: str) -> list[Path]:
    """Download what a reference names and return the local files, in order of their names.

    A split is every `.jsonl`, `.jsonl.gz`, `.jsonl.zst` or `.parquet` file whose name begins with it, at the top
    of the repository or in its folder `data`. Raises `DataError` where `huggingface_hub` is not installed, the hub
    cannot be reached and the files are not cached, or there is no such data.
    """
    reference = parse_reference(text)
    try:
        import huggingface_hub
        from huggingface_hub import errors
    except ImportError as error:
        raise DataError(f"{text}: reading from the hub needs huggingface_hub; `pip install huggingface_hub`") from error
    # The HTTP library under huggingface_hub changes between its versions; its own error is not an OSError.
    trouble: tuple[type[Exception], ...] = (OSError, ValueError, getattr(errors, "HTTPError", OSError))
    try:
        if reference.file is not None:
            path = huggingface_hub.hf_hub_download(
                reference.repository, reference.file, repo_type="dataset", revision=reference.revision
            )
            return [Path(path)]
        patterns = [
            f"{folder}{reference.split}{rest}{suffix}"
            for folder in ("", "data/")
            for rest in ("", "-*", ".*", "_*")
            for suffix in _SUFFIXES
        ]
        folder = Path(
            huggingface_hub.snapshot_download(
                reference.repository, repo_type="dataset", revision=reference.revision, allow_patterns=patterns
            )
        )
    except trouble as error:
        raise DataError(
            f"{text}: cannot fetch it from the hub: {_first_line(error)}; check the name and the connection, "
            "or download the files yourself and give their paths"
        ) from error
    found = sorted({path for pattern in patterns for path in folder.glob(pattern)})
    if not found:
        try:
            names = huggingface_hub.list_repo_files(
                reference.repository, repo_type="dataset", revision=reference.revision
            )
        except trouble:
            names = []
        held = ", ".join(name for name in names if name.endswith(_SUFFIXES)) or "none that can be read"
        raise DataError(
            f"{text}: no files of the split {reference.split!r}; "
            f"name one with hub:{reference.repository}/FILE (files there: {held})"
        )
    return found


def _first_line(error: Exception) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
