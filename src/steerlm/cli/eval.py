"""`steerlm eval`: what a model is worth, by commands that load only what they need."""

from __future__ import annotations

from cyclopts import App

eval_app = App(name="eval", help="Measure models: what they score, and whether they steer.")
eval_app.command("steerlm.cli.eval_mt_bench:mt_bench_app", name="mt-bench")
