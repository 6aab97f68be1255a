"""Model families: where a decoder's attention modules are, and where a query can be taken before its rotation."""

from __future__ import annotations

import re
from typing import Any, NamedTuple

import torch

_DECODER = r"(?:.*\.)?layers\.\d+\.self_attn"


class Family(NamedTuple):
    """How a family is built."""

    # The submodule of attention whose output is the query after bias and norm, before RoPE. Of its last axis the first
    # H * D are the query.
    query: str = "q_proj"
    # Whether that output is [B, H, T, D] rather than [B, T, ...].
    heads_first: bool = False
    # Full names of the decoder's attention modules.
    attention: str = _DECODER


FAMILIES: dict[str, Family] = {
    "gemma2": Family(),
    "gemma3_text": Family("q_norm", heads_first=True),
    "gemma3": Family("q_norm", heads_first=True, attention=r"(?:.*\.)?language_model\.(?:.*\.)?layers\.\d+\.self_attn"),
    "granite": Family(),
    "llama": Family(),
    "mistral": Family(),
    "mixtral": Family(),
    "olmo2": Family("q_norm"),
    "phi3": Family("qkv_proj"),
    "qwen2": Family(),
    "qwen2_moe": Family(),
    "qwen3": Family("q_norm"),
    "qwen3_moe": Family("q_norm"),
    "smollm3": Family(),
}


def family_of(model_config: Any) -> Family | None:
    """The family of a transformers configuration, or None where it is not in the table."""
    return FAMILIES.get(getattr(model_config, "model_type", ""))


def is_attention(module: torch.nn.Module) -> bool:
    """Whether a module is a decoder's attention that this package can reach."""
    return all(hasattr(module, name) for name in ("layer_idx", "head_dim", "config"))


def attention_modules(model: torch.nn.Module) -> dict[int, torch.nn.Module]:
    """The attention modules of a model of a known family, by layer.

    Raises `ValueError` for another family, and when not every layer has exactly one.
    """
    config: Any = model.config
    family = family_of(config)
    if family is None:
        raise ValueError(f"model type {config.model_type!r}: known are {', '.join(sorted(FAMILIES))}")
    out: dict[int, torch.nn.Module] = {}
    for name, module in model.named_modules():
        if not re.fullmatch(family.attention, name) or not is_attention(module):
            continue
        if out.setdefault(int(module.layer_idx), module) is not module:  # type: ignore[arg-type]
            raise ValueError(f"{name}: two attention modules of layer {module.layer_idx}")
    text = config.get_text_config() if hasattr(config, "get_text_config") else config
    if sorted(out) != list(range(text.num_hidden_layers)):
        raise ValueError(f"expected an attention module in each of {text.num_hidden_layers} layers, found {sorted(out)}")
    return out
