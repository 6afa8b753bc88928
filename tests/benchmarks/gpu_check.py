"""Everything that only a card can show, in one go of 8.5 minutes: `python
tests/benchmarks/gpu_check.py --out FOLDER`.

Does the product run there, does it compute what it should, how fast is it against TRL and
`transformers.generate`, and does it fit where the estimates say so. Each section is a process with
a time limit of its own, and writes what it found at once; none stops the next. The models are of
Qwen2.5's sizes with weights drawn on the card, so that no network is needed, but for the smoke
model. Exit 1 if a check of the product, the computation or the memory fails.

`--toy` is for a machine without a card: every section at a size that takes seconds.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
import traceback
from pathlib import Path
from typing import Any

import gpu_computation
import gpu_memory
import gpu_product
import gpu_speed
from gpu_models import Facts

# The function of a section, and its seconds.
SECTIONS = {
    "machine": (gpu_product.machine, 40),
    "product": (gpu_product.product, 90),
    "computation": (gpu_computation.computation, 100),
    "training": (gpu_speed.training, 130),
    "generation": (gpu_speed.generation, 80),
    "memory": (gpu_memory.memory, 60),
}
MUST_PASS = ("product", "computation", "memory")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("gpu_check"))
    parser.add_argument("--toy", action="store_true", help="seconds, on a CPU")
    parser.add_argument(
        "--only", choices=SECTIONS, action="append", help="sections, by default all"
    )
    parser.add_argument("--here", action="store_true", help="all sections in this process")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    names = options.only or list(SECTIONS)
    for name in names:
        if options.here:
            run_here(name, options.out, toy=options.toy)
        else:
            run_apart(name, options.out, toy=options.toy)
    found = [fact for name in names for fact in read(options.out / f"{name}.jsonl")]
    table = table_of(found)
    (options.out / "table.md").write_text(table, "utf-8")
    print(table)
    failed = [f for f in found if f["ok"] is False and f["section"] in MUST_PASS]
    sys.exit(1 if failed else 0)


def run_here(name: str, out: Path, *, toy: bool) -> None:
    facts, began = Facts(name, out / f"{name}.jsonl"), time.monotonic()
    try:
        SECTIONS[name][0](facts, toy)
    except Exception:
        facts.check("the section ends", traceback.format_exc()[-1500:], "no error", ok=False)
    facts.note("seconds of the section", round(time.monotonic() - began, 1), "s")


def run_apart(name: str, out: Path, *, toy: bool) -> None:
    command = [sys.executable, __file__, "--here", "--only", name, "--out", str(out)]
    limit = SECTIONS[name][1]
    (out / f"{name}.jsonl").unlink(missing_ok=True)
    with (out / f"{name}.log").open("w") as log:
        try:
            options: Any = {"stdout": log, "stderr": log, "timeout": limit}
            subprocess.run([*command, *(["--toy"] if toy else [])], check=False, **options)
        except subprocess.TimeoutExpired:
            Facts(name, out / f"{name}.jsonl", new=False).check(
                "the section ends", f"stopped after {limit} s", "in time", ok=False
            )


def read(file: Path) -> list[dict[str, Any]]:
    if not file.exists():
        section = {"section": file.stem, "name": "the section ends", "unit": "", "wanted": "facts"}
        return [{**section, "value": "it wrote nothing", "ok": False}]
    return [json.loads(line) for line in file.read_text("utf-8").splitlines()]


def table_of(found: list[dict[str, Any]]) -> str:
    lines = ["| section | what | found | wanted | |", "|---|---|---|---|---|"]
    for fact in found:
        value = f"{fact['value']:.4g}" if isinstance(fact["value"], float) else fact["value"]
        mark = {True: "ok", False: "**fails**", None: ""}[fact["ok"]]
        text = f"{value} {fact['unit']}".strip().replace("|", "\\|").replace("\n", " ")
        lines.append(f"| {fact['section']} | {fact['name']} | {text} | {fact['wanted']} | {mark} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
