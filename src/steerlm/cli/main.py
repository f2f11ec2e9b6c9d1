"""`steerlm`: registers the commands, and turns errors into one line and an exit code."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

import cyclopts
from rich.console import Console

from steerlm import __version__
from steerlm.errors import SteerLMError, StoppedError, TrainingError

# Tokenizers' own threads warn and stall after a fork; ours is one process.
os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")


COMMANDS = {
    "quickstart": ("quickstart:quickstart_command", "Rated conversations in, a steerable model and a table out."),
    "data": ("data:data_app", "Import rated conversations from other formats, check them and look into them."),
    "train": ("train:train_app", "Train an attribute model (a judge of responses) or a policy (what is steered)."),
    "plan": ("plan:plan_command", "Tell whether a training fits on GPUs, what to change if not, how long it takes."),
    "eval": ("eval:eval_app", "Measure models: an attribute model against people, a policy against what is asked."),
    "card": ("card:card_command", "Write the model card of a trained model."),
    "annotate": ("annotate:annotate_command", "Score every response of a file with an attribute model."),
    "export": ("export:export_app", "Write a trained model in another program's form."),
    "generate": ("generate:generate_command", "Answer a prompt with the attributes you ask for."),
    "serve": ("serve:serve_command", "Serve a policy over OpenAI's API, to be steered by every request."),
    "keys": ("keys:keys_app", "Make, list and revoke the API keys of a server."),
    "chat": ("chat:chat_command", "Talk to a policy in the terminal, with its attributes at hand."),
}


_NUMBERS: dict[type, str] = {int: "a whole number", float: "a number"}


def build_app(summaries: bool = False) -> cyclopts.App:
    """The whole command tree. Commands are named, not imported: PyTorch is loaded by those that need it, when run.

    With `summaries` each command shows its one line from here, for which it need not be loaded; else its own help.
    """
    app = cyclopts.App(
        name="steerlm",
        version=__version__,
        help="Train language models that their users steer by attributes, and talk to them.",
        help_epilogue="A tour: steerlm quickstart; steerlm chat runs/quickstart/policy",
        result_action="return_value",
        # No --empty-stop beside --stop.
        default_parameter=cyclopts.Parameter(negative_iterable=(), show_default=shown_default),
        suppress_keyboard_interrupt=False,  # `run` tells what to do after one
    )
    for name, (place, summary) in COMMANDS.items():
        app.command(f"steerlm.cli.{place}", name=name, **({"help": summary} if summaries else {}))
    return app


def shown_default(value: object) -> str | None:
    """What the help shows of a default: nothing where it is that nothing is given."""
    return None if value is False or value in ((), [], {}) else str(value)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run a command and exit: 0 done, 1 a training failed, 2 bad input or circumstances, 128 + n ended by signal n
    (130 Ctrl-C, 143 SIGTERM) with all work saved: run it again to go on.
    """
    sys.exit(run(sys.argv[1:] if arguments is None else arguments))


def _in_words(error: cyclopts.CycloptsError) -> str:
    """What is wrong with a command line; of settings, each with its flag."""
    from pydantic import ValidationError

    if isinstance(error, cyclopts.CoercionError) and error.token is not None and error.target_type in _NUMBERS:
        what = f"must be {_NUMBERS[error.target_type]}, not {error.token.value!r}"
        return f"{error.token.keyword}: {what}" if error.token.keyword else what
    if not isinstance(error.__cause__, ValidationError):
        return str(error)
    from steerlm.training.wording import faults

    return "; ".join(faults(error.__cause__, name=lambda path: f"--{path.replace('_', '-')}"))


def _tell(errors: Console, error: Exception) -> None:
    """Print an error; of one that many processes meet, only one does."""
    if "WORLD_SIZE" in os.environ:
        from steerlm.parallel.ranks import is_first_to_tell

        if not is_first_to_tell(error):
            return
    errors.print(f"error: {error}", markup=False, highlight=False, style="red")


def run(arguments: Sequence[str]) -> int:
    """Run a command; returns the exit code."""
    errors = Console(stderr=True, soft_wrap=True)
    try:
        asks_for_overview = not arguments or arguments[0].startswith("-")
        result = build_app(asks_for_overview)(list(arguments), exit_on_error=False, print_error=False)
    except cyclopts.CycloptsError as error:
        command = " ".join(("steerlm", *(error.command_chain or ())))
        errors.print(f"error: {_in_words(error)}\nsee {command} --help", markup=False, highlight=False, style="red")
        return 2
    except SteerLMError as error:
        _tell(errors, error)
        if isinstance(error, StoppedError):
            return 128 + error.signal
        return 1 if isinstance(error, TrainingError) else 2
    except OSError as error:
        # A full disk, a missing permission: circumstances, not bugs.
        _tell(errors, error)
        return 2
    except KeyboardInterrupt:
        errors.print("interrupted; run the same command again to go on where it stopped", style="red")
        return 130
    return result if isinstance(result, int) else 0
