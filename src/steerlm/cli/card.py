"""`steerlm card`: the model card of a trained model."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter
from rich.console import Console

from steerlm.card import write_card


def card_command(
    model: Path,
    /,
    *,
    license_: Annotated[str | None, Parameter(name="--license")] = None,
    overwrite: Annotated[bool, Parameter(negative=())] = False,
) -> None:
    """Write the model card (README.md) of a trained model, as the Hugging Face hub shows it.

    steerlm card runs/quickstart/policy

    Training writes it, and evaluations refresh it; it is made from steerlm.json and from the results in the model's
    `evaluation` folder.

    Parameters
    ----------
    model
        Directory of a trained attribute model or policy.
    license_
        Licence for the metadata, such as apache-2.0 or llama2; without one, that of the base where it is known.
    overwrite
        Write over a README.md that steerlm has not made.
    """
    path = write_card(model, overwrite, license_)
    Console(stderr=True, soft_wrap=True).print(f"wrote {path}", highlight=False, markup=False)
