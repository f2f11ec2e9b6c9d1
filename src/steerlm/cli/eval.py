"""`steerlm eval`: what a model is worth, in figures that others can check."""

from __future__ import annotations

from cyclopts import App

eval_app = App(
    name="eval",
    help="""Measure models.

    attributes: an attribute model against human ratings and preferences. steering: a policy against what it is asked
    for. mt-bench: answers to two-turn questions, graded by a language model, at one attribute setting or at several.
    """,
)
eval_app.command("steerlm.cli.eval_attributes:eval_attributes_command", name="attributes")
eval_app.command("steerlm.cli.eval_steering:eval_steering_command", name="steering")
eval_app.command("steerlm.cli.eval_mt_bench:mt_bench_app", name="mt-bench")
