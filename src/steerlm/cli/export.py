"""`steerlm export`: a trained model in the form that other programs read."""

from __future__ import annotations

from pathlib import Path

from cyclopts import App
from rich.console import Console

from steerlm.checkpoints.huggingface import export_hf

export_app = App(name="export", help="Write a trained model in another program's form.")


@export_app.command(name="hf")
def export_hf_command(model: Path, *, out: Path) -> None:
    """Write plain Hugging Face weights, with an adapter merged into its base model.

    steerlm export hf runs/adapter --out runs/merged

    OUT needs no other model: a policy loads in AutoModelForCausalLM, an attribute model in
    AutoModelForSequenceClassification, with the logits and scores of MODEL. A model without an adapter is copied.

    Parameters
    ----------
    model
        Directory of a trained policy or attribute model.
    out
        Directory to write; it must not exist, or be empty.
    """
    exported = export_hf(model, out)
    console = Console(stderr=True, soft_wrap=True)
    console.print(f"saved {exported.info.kind} {exported.info.fingerprint} to {out}", highlight=False, markup=False)
