"""`steerlm eval`: what a model is worth, in figures that others can check."""

from __future__ import annotations

from cyclopts import App

eval_app = App(
    name="eval",
    help="""Measure models.

    mt-bench: answers to two-turn questions, graded by a language model, at one attribute setting or at several.
    """,
)
eval_app.command("steerlm.cli.eval_mt_bench:mt_bench_app", name="mt-bench")
