"""Recipes that come with the package: YAML files of settings, named on the command line by path or by bare name."""

from __future__ import annotations

from pathlib import Path

from steerlm.errors import ConfigError

FOLDER = Path(__file__).parent


def find_recipe(name: str | Path) -> Path:
    """The file of a recipe: a path to one's own, or the name of one of ours. Raises `ConfigError` for neither."""
    path = Path(name)
    if path.is_file():
        return path
    ours = FOLDER / f"{name}.yaml"
    if ours.is_file() and path.parent == Path():
        return ours
    names = ", ".join(sorted(file.stem for file in FOLDER.glob("*.yaml")))
    raise ConfigError(f"{name}: no such recipe; give the path of a YAML file or one of: {names}")
