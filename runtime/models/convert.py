"""Converts GGUF weights to a folder that vLLM reads: ``python -m speclrm.runtime.models.convert GGUF FOLDER``.

Runs as a process of its own, so that torch and transformers never enter the caller, and their memory is released.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any, cast


def convert(source: Path, folder: Path) -> None:
    """Writes safetensors in bfloat16, the configuration, and the tokenizer with its chat template."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    tokenizer: Any = cast("Any", AutoTokenizer).from_pretrained(source.parent, gguf_file=source.name)
    model: Any = cast("Any", AutoModelForCausalLM).from_pretrained(
        source.parent,
        gguf_file=source.name,
        quantization_config=GgufConfig(dequantize=True),
        dtype=torch.bfloat16,
    )
    # The weights are not quantised any more; readers of the folder must not expect that.
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    model.config.dtype = torch.bfloat16
    tokenizer.save_pretrained(folder)
    model.save_pretrained(folder)


if __name__ == "__main__":
    convert(Path(sys.argv[1]), Path(sys.argv[2]))
