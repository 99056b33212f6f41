"""Makes model folders of stated shapes without weights, so that speed can be measured where the models are not.

vLLM fills them with random numbers (``load_format=dummy``). What such models say is noise; what they cost is what a model of that
shape costs.
"""

from __future__ import annotations

import json
import os
import shutil
from typing import TYPE_CHECKING

from speclrm.runtime.errors import ModelError, SettingsError
from speclrm.runtime.machine.sizing import SHAPES as KNOWN
from speclrm.runtime.machine.sizing import ModelShape

if TYPE_CHECKING:
    from pathlib import Path

SHAPES = {
    "qwq-32b": KNOWN["Qwen/QwQ-32B"],
    "r1-1.5b": KNOWN["deepseek-ai/DeepSeek-R1-Distill-Qwen-1.5B"],
    "qwen2.5-1.5b": KNOWN["qwen2.5-coder-1.5b-instruct"],
    "qwen2.5-0.5b": KNOWN["qwen2.5-coder-0.5b-instruct"],
    "tiny": ModelShape(0, 2, 1, 64, 32_768, 128, 256, 0),
    "tiny-wide": ModelShape(0, 4, 2, 64, 32_768, 256, 512, 0),
}
"""By name. The tiny ones show that a measurement works, and nothing else."""
TIED = ("qwen2.5-1.5b", "qwen2.5-0.5b", "tiny", "tiny-wide")
"""Those that use one matrix for input and output."""
PADDING = 64


def read_pair(text: str) -> tuple[str, str]:
    """Reads ``TARGET:DRAFT``, two names of shapes. Raises SettingsError."""
    target, _, draft = text.partition(":")
    if target not in SHAPES or draft not in SHAPES:
        raise SettingsError(f"--shape {text!r}: write TARGET:DRAFT, of {', '.join(SHAPES)}, such as qwq-32b:r1-1.5b.")
    return target, draft


def make_folder(name: str, tokenizer: Path, folder: Path) -> Path:
    """Writes the configuration of a shape, and links the files of a tokenizer's folder beside it. Returns the folder.

    Raises:
        ModelError: there is no tokenizer, or it has more ids than the shape has rows.
    """
    shape = SHAPES[name]
    if not (tokenizer / "tokenizer.json").is_file():
        raise ModelError(f"{tokenizer} has no tokenizer.json. Give --tokenizer the folder or name of a model.")
    ids = _ids(tokenizer)
    rows = shape.vocabulary or -(-ids // PADDING) * PADDING
    if ids > rows:
        raise ModelError(
            f"The tokenizer in {tokenizer} has {ids} ids and a {name} has rows for {rows}. Give another --tokenizer."
        )
    folder.mkdir(parents=True, exist_ok=True)
    for file in tokenizer.iterdir():
        if file.is_file() and (file.name.startswith(("tokenizer", "vocab", "merges", "special", "added", "chat"))):
            _link(file, folder / file.name)
    config = {
        "architectures": ["Qwen2ForCausalLM"],
        "model_type": "qwen2",
        "dtype": "bfloat16",
        "torch_dtype": "bfloat16",
        "hidden_act": "silu",
        "hidden_size": shape.hidden,
        "initializer_range": 0.02,
        "intermediate_size": shape.intermediate,
        "max_position_embeddings": shape.context,
        "num_attention_heads": shape.hidden // shape.head_size,
        "num_hidden_layers": shape.layers,
        "num_key_value_heads": shape.kv_heads,
        "rms_norm_eps": 1e-6,
        "rope_theta": 1e6,
        "tie_word_embeddings": name in TIED,
        "use_cache": True,
        "use_sliding_window": False,
        "vocab_size": rows,
    }
    (folder / "config.json").write_text(json.dumps(config, indent=1) + "\n", encoding="utf-8")
    return folder


def _ids(tokenizer: Path) -> int:
    read = json.loads((tokenizer / "tokenizer.json").read_text(encoding="utf-8"))
    added = [one["id"] for one in read.get("added_tokens", ())]
    return max([*read["model"]["vocab"].values(), *added]) + 1


def _link(file: Path, to: Path) -> None:
    to.unlink(missing_ok=True)
    try:
        os.symlink(file.resolve(), to)
    except OSError:
        shutil.copy(file, to)
