"""`steerlm eval`: whether a model does what it should, in figures that others can check."""

from __future__ import annotations

from cyclopts import App

eval_app = App(
    name="eval",
    help="""Measure models.

    attributes: an attribute model against human ratings and preferences. steering: a policy against what it is asked
    for.
    """,
)
eval_app.command("steerlm.cli.eval_attributes:eval_attributes_command", name="attributes")
eval_app.command("steerlm.cli.eval_steering:eval_steering_command", name="steering")
