"""`steerlm export`: a trained model in the form that other programs read."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import App, Parameter
from rich.console import Console
from rich.progress import Progress

from steerlm.card import refresh_card
from steerlm.checkpoints.gguf import Quantization, export_gguf
from steerlm.checkpoints.huggingface import export_hf
from steerlm.checkpoints.ollama import write_modelfile

export_app = App(name="export", help="Write a trained model in another program's form.")


@export_app.command(name="hf")
def export_hf_command(
    model: Path, *, out: Path, set_: Annotated[list[str] | None, Parameter(name=["--set", "-s"])] = None
) -> None:
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
    set_
        An attribute and the value that the new policy is asked for by default, such as verbosity=1, so that programs
        which know nothing of attributes (lm-evaluation-harness, for one) get it at this setting. May be repeated.
    """
    exported = export_hf(model, out, set_ or [])
    console = Console(stderr=True, soft_wrap=True)
    refresh_card(out, lambda text: console.print(text, highlight=False, markup=False))
    console.print(f"saved {exported.info.kind} {exported.info.fingerprint} to {out}", highlight=False, markup=False)


@export_app.command(name="gguf")
def export_gguf_command(
    model: Path, *, out: Path, quantization: Annotated[Quantization, Parameter(name="--type")] = "q8_0"
) -> None:
    """Write a policy as a GGUF file, for llama.cpp, Ollama, LM Studio and others.

    steerlm export gguf runs/quickstart/policy --out policy.gguf

    The file has the weights, the tokenizer and the chat template of a Llama, Qwen2 or Qwen3 model; an adapter is
    merged into its base model. A Modelfile for Ollama, which does not use that template, is written beside it
    (policy.Modelfile). Files that are there already are replaced.

    Parameters
    ----------
    model
        Directory of a trained policy.
    out
        File to write; its name ends in .gguf.
    quantization
        How matrices are stored: q8_0 (8-bit integers with a scale for every 32) or f16.
    """
    console = Console(stderr=True, soft_wrap=True)
    with Progress(console=console, transient=True) as bar:
        task = bar.add_task(f"writing {out.name}", total=None)
        written = export_gguf(
            model, out, quantization, lambda done, total: bar.update(task, completed=done, total=total)
        )
    modelfile = write_modelfile(model, out)
    for warning in written.warnings:
        console.print(f"warning: {warning}", highlight=False, markup=False, style="yellow")
    console.print(
        f"saved {written.tensors} tensors, {written.bytes / 1e6:,.1f} MB, to {out}, and {modelfile.name} beside it",
        highlight=False,
        markup=False,
    )
