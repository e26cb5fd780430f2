"""Writes a model that is small enough for any machine: `make_model.py DIRECTORY`.

A Llama of two layers and 360,768 random weights, with a real byte-level tokenizer that has learned
its 2,048 words from the standard library's own sources. Nothing is downloaded. Its answers mean
nothing, but the same prompt has the same answer, in any engine, for ever.
"""

import argparse
import json
import os
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

BEGIN, TURN, END, PAD = "<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|pad|>"
WORDS, CORPUS_FILES = 2048, 120
CONTEXT_TOKENS = 8192
SEED = 0
SPREAD = 0.2
"""Of the weights: wide enough that one word leads clearly, so that rounding changes no answer."""

TEMPLATE = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] "
    "+ '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("directory", type=Path)
    directory = parser.parse_args().directory
    directory.mkdir(parents=True, exist_ok=True)
    tokenizer = make_tokenizer()
    tokenizer.save_pretrained(directory)
    model = make_model(tokenizer)
    model.save_pretrained(directory)
    ids = {
        f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("bos", "eos", "pad")
    }
    (directory / "generation_config.json").write_text(json.dumps(ids))


def make_tokenizer() -> PreTrainedTokenizerFast:
    words = Tokenizer(models.BPE())
    words.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    words.decoder = decoders.ByteLevel()
    words.post_processor = processors.ByteLevel(trim_offsets=False)
    trainer = trainers.BpeTrainer(
        vocab_size=WORDS,
        special_tokens=[BEGIN, TURN, END, PAD],
        show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    corpus = sorted(Path(os.__file__).parent.glob("*.py"))[:CORPUS_FILES]
    words.train([str(path) for path in corpus], trainer)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=words,
        bos_token=BEGIN,
        eos_token=END,
        pad_token=PAD,
        model_max_length=CONTEXT_TOKENS,
        clean_up_tokenization_spaces=False,
    )
    tokenizer.chat_template = TEMPLATE
    return tokenizer


def make_model(tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    torch.manual_seed(SEED)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=32,
        max_position_embeddings=CONTEXT_TOKENS,
        tie_word_embeddings=False,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        initializer_range=SPREAD,
    )
    return LlamaForCausalLM(config).to(torch.float32).eval()


if __name__ == "__main__":
    main()
