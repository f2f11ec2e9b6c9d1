"""What a model directory says of itself: `steerlm.json` beside the ordinary Hugging Face files."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from steerlm.attributes import Schema
from steerlm.dialects import DIALECTS
from steerlm.errors import ModelError, SchemaError
from steerlm.files import sha256, write_json

FILE = "steerlm.json"
ADAPTER_CONFIG = "adapter_config.json"
Kind = Literal["attribute-model", "policy"]
_FORMAT = 1
_ARTICLES: dict[str, str] = {"policy": "a policy", "attribute-model": "an attribute-model"}


@dataclass(frozen=True)
class Base:
    """The base model of an adapter.

    name     a Hugging Face id, an absolute path, or smollm2
    digest   what tells its weights from others' (`steerlm.models.base.weights_digest`)
    """

    name: str
    digest: str


@dataclass(frozen=True)
class ModelInfo:
    """The contents of `steerlm.json`.

    kind          attribute-model or policy
    schema        the attributes, in the order of score columns and label lines, with the values asked for by default
    dialect       name of the prompt format
    system        the system text of prompts that bring none
    fingerprint   digest of weights, schema and dialect: what `predicted_by` refers to
    base          where the directory holds an adapter: the model that it adapts
    provenance    base model, digest, sources and annotators of the data, settings, code and library versions
    metrics       validation figures of the kept weights
    """

    kind: Kind
    schema: Schema
    dialect: str
    system: str = ""
    fingerprint: str = ""
    base: Base | None = None
    provenance: dict[str, Any] = field(default_factory=dict)
    metrics: dict[str, Any] = field(default_factory=dict)

    def save(self, directory: str | Path) -> None:
        fields = {name: getattr(self, name) for name in self.__dataclass_fields__}
        base = asdict(self.base) if self.base else None
        record = {"format": _FORMAT, **fields, "schema": self.schema.to_list(), "base": base}
        write_json(Path(directory) / FILE, record)

    @classmethod
    def load(cls, directory: str | Path, kind: Kind | None = None) -> ModelInfo:
        """Read `steerlm.json`. Raises `ModelError` where there is none, or the model is of another kind."""
        path = Path(directory) / FILE
        if not path.is_file():
            what = "no such directory" if not Path(directory).is_dir() else f"it has no {FILE}"
            raise ModelError(
                f"{directory} is no steerlm model: {what}; train one with `steerlm train` or check the path"
            )
        try:
            record = json.loads(path.read_text(encoding="utf-8"))
            if record.pop("format") != _FORMAT:
                raise ModelError(f"{path}: written by a newer steerlm; upgrade to read it")
            base = Base(**record["base"]) if record.get("base") else None
            schema = Schema.from_list(record["schema"], where=str(path))
            info = cls(**{**record, "schema": schema, "base": base})
        except (ValueError, KeyError, TypeError, AttributeError, SchemaError) as error:
            raise ModelError(f"{path}: not a readable steerlm.json: {error}") from error
        if info.dialect not in tuple(DIALECTS):
            raise ModelError(f"{path}: unknown dialect {info.dialect!r}; this version knows {', '.join(DIALECTS)}")
        if kind is not None and info.kind != kind:
            raise ModelError(f"{directory} is {_ARTICLES.get(info.kind, info.kind)}, where {_ARTICLES[kind]} is needed")
        return info

    @property
    def hub_base(self) -> str | None:
        """The base as the hub knows it; a path of some machine is no name."""
        base = self._base
        is_id = base is not None and base.count("/") == 1 and not base.startswith((".", "/", "~")) and "\\" not in base
        return base if is_id and not Path(str(base)).exists() else None

    @property
    def base_name(self) -> str | None:
        """The base by a name that says nothing of a machine: of a path its last part; None where none is known."""
        return self.hub_base or (Path(self._base).name if self._base is not None else None)

    @property
    def _base(self) -> str | None:
        base = self.base.name if self.base else self.provenance.get("base")
        return base if isinstance(base, str) else None


def weights_fingerprint(directory: str | Path, schema: Schema, dialect: str, base: Base | None = None) -> str:
    """A digest that changes whenever the scores or answers of the model in `directory` may change."""
    digest = hashlib.sha256(json.dumps([schema.to_list(), dialect]).encode())
    files = sorted(Path(directory).glob("*.safetensors"))
    if base is not None:
        config = json.loads((Path(directory) / ADAPTER_CONFIG).read_text(encoding="utf-8"))
        del config["base_model_name_or_path"]  # where it is does not matter, what it is does
        digest.update(json.dumps([base.digest, config], sort_keys=True).encode())
    if not files:
        raise ModelError(f"{directory}: no .safetensors weights in it")
    for file in files:
        digest.update(f"{file.name}:{sha256(file)}".encode())
    return digest.hexdigest()[:16]
