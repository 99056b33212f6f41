"""Two small models with random weights and a real tokenizer, made in a second."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pathlib import Path

CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
CORPUS = [
    "Solve the problem step by step. Separate the steps by blank lines.\n\n",
    "I think the quality score is: 7\n\n",
    "We add the numbers and get 12.\n\nSo the final answer is \\boxed{12}.\n\n",
] * 20


def make_tokenizer(folder: Path, *, size: int) -> int:
    """A byte-level BPE tokenizer in the style of Qwen2: digits alone, blank lines as tokens. Returns its size."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer: Any = Tokenizer(models.BPE())
    split = Regex(r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(split, "isolated"), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(
        json.dumps(
            {
                "tokenizer_class": "PreTrainedTokenizerFast",
                "eos_token": "<|im_end|>",
                "pad_token": "<|endoftext|>",
                "chat_template": CHAT_TEMPLATE,
            }
        )
    )
    return tokenizer.get_vocab_size()


def make_model(folder: Path, *, hidden: int = 64, layers: int = 2, seed: int = 0, vocabulary: int = 320) -> Path:
    """A model of Qwen2's form with random weights."""
    import torch
    from transformers import Qwen2Config, Qwen2ForCausalLM

    size = make_tokenizer(folder, size=vocabulary)
    torch.manual_seed(seed)  # pyright: ignore[reportUnknownMemberType]
    config = Qwen2Config(
        vocab_size=(size + 63) // 64 * 64,
        hidden_size=hidden,
        intermediate_size=hidden * 2,
        num_hidden_layers=layers,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=2048,
        tie_word_embeddings=True,
        eos_token_id=2,
        bos_token_id=None,
    )
    model: Any = Qwen2ForCausalLM(config)
    model.save_pretrained(folder)
    return folder
