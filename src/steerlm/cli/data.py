"""`steerlm data import|export|stats|check|show`: conversation files from other people's data, and a look into them."""

from __future__ import annotations

from cyclopts import App, Parameter

from steerlm.cli.data_convert import export_command, import_command
from steerlm.cli.data_inspect import check_command, show_command, stats_command

data_app = App(
    name="data",
    help="Import rated conversations from other formats, check them and look into them.",
    default_parameter=Parameter(negative=()),
)
for _name, _command in (
    ("import", import_command),
    ("export", export_command),
    ("stats", stats_command),
    ("check", check_command),
    ("show", show_command),
):
    data_app.command(_command, name=_name)
