"""What an adapter computes, and the values that its configuration can have.

Per layer and query head h, with q the query as attention uses it (after RoPE, not scaled by 1/sqrt(d)):

    o[h] = attention[h] + memory_scale * phi(query_scale * q[h]) @ M[h]
    phi(x) = act(x), or with a learned feature map act(x @ W[h].T + b[h]); optionally divided by phi(q[h]) . N[h]

Shapes: M [H', F, D_v], W [H', F, D], b [H', F], N [H', F]; H' is the number of query heads (per_head), of key/value
heads (per_kv_head) or 1 (shared). Source of the method: arXiv 2506.13674.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F

FEATURE_MAPS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "identity": lambda x: x,
    "elu": F.elu,
    "elu_plus_one": lambda x: F.elu(x) + 1.0,
    "relu": F.relu,
    "silu": F.silu,
    "gelu": F.gelu,
    "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
    "softplus": F.softplus,
    "sigmoid": torch.sigmoid,
    "tanh": torch.tanh,
    "exp": torch.exp,
}
QUERY_TAPS = ("post_rope", "pre_rope")
SHARINGS = ("per_head", "per_kv_head", "shared")
ROLES = ("memory", "feature.weight", "feature.bias", "normalizer")
PEFT_TYPE = "PREFIX_TUNING_PLUS"
# The names of a layer's parts at its attention module, by role: what PEFT saves, and `ptplus` reads.
ATTRIBUTES = {role: "prefix_" + role.replace(".", "_") for role in ROLES}


class Conventions(NamedTuple):
    """What a memory means. None of them has a default in a file."""

    feature_map: str
    query_tap: str
    query_scale: float
    memory_scale: float
    memory_sharing: str

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> Conventions:
        """Of the keys of an adapter_config.json. Raises `ValueError` for one that is missing or unknown."""
        for key in cls._fields:
            if config.get(key) is None:
                raise ValueError(f"adapter_config.json does not state {key}; it has no default")
        known = {"feature_map": tuple(FEATURE_MAPS), "query_tap": QUERY_TAPS, "memory_sharing": SHARINGS}
        for key, values in known.items():
            if config[key] not in values:
                raise ValueError(f"{key}: expected one of {', '.join(values)}, found {config[key]!r}")
        for key in ("query_scale", "memory_scale"):
            scale = config[key]
            if isinstance(scale, bool) or not isinstance(scale, (int, float)) or not math.isfinite(scale):
                raise ValueError(f"{key}: expected a finite number, found {scale!r}")
        return cls(*(config[key] for key in cls._fields))


class Sizes(NamedTuple):
    """Of a base model, by the keys of adapter_config.json."""

    num_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    base_model_type: str

    @classmethod
    def of(cls, model_config: Any) -> Sizes:
        """Of a transformers configuration; of its text part, where it has parts."""
        c = model_config.get_text_config() if hasattr(model_config, "get_text_config") else model_config
        heads = c.num_attention_heads
        return cls(
            num_layers=c.num_hidden_layers,
            num_attention_heads=heads,
            num_key_value_heads=getattr(c, "num_key_value_heads", None) or heads,
            head_dim=getattr(c, "head_dim", None) or c.hidden_size // heads,
            base_model_type=c.model_type,
        )

    def check(self, config: Mapping[str, Any]) -> None:
        """Raises `ValueError` where an adapter's configuration states other sizes than this base has."""
        for key, has in self._asdict().items():
            if config.get(key) not in (None, has):
                raise ValueError(f"{key}: expected {has!r}, as the model has, found {config[key]!r}")

    def memories(self, sharing: str) -> int:
        """H': how many memories a layer has."""
        return {"per_head": self.num_attention_heads, "per_kv_head": self.num_key_value_heads, "shared": 1}[sharing]


def shapes(
    sizes: Sizes, sharing: str, features: int | None = None, bias: bool = False, normalizer: bool = False
) -> dict[str, tuple[int, ...]]:
    """The shape of each part of a layer, by role. `features`: of a learned feature map; None: phi = act alone."""
    h, d, f = sizes.memories(sharing), sizes.head_dim, features if features is not None else sizes.head_dim
    if f <= 0:
        raise ValueError(f"features: expected a positive number, found {features!r}")
    if bias and features is None:
        raise ValueError("a bias belongs to a learned feature map: state the number of features, too")
    out: dict[str, tuple[int, ...]] = {"memory": (h, f, d)}
    if features is not None:
        out["feature.weight"] = (h, f, d)
        if bias:
            out["feature.bias"] = (h, f)
    if normalizer:
        out["normalizer"] = (h, f)
    return out


def initial(role: str, shape: tuple[int, ...], device: Any = None) -> torch.Tensor:
    """A fresh part, F32. Memories are 0, so that an untrained adapter changes nothing."""
    if role == "feature.weight":
        return torch.randn(shape, dtype=torch.float32, device=device) / math.sqrt(shape[-1])
    fill = 1.0 if role == "normalizer" else 0.0
    return torch.full(shape, fill, dtype=torch.float32, device=device)


def term(q: torch.Tensor, parts: Mapping[str, torch.Tensor], c: Conventions) -> torch.Tensor:
    """q [B, H, T, D] at the tap -> the additive term [B, H, T, D_v], in F32 (F64 for memories in F64).

    Whatever the base's type and whatever `torch.autocast` says: the function that is trained is the one that is exported.
    """
    heads, dtype = q.shape[1], torch.promote_types(parts["memory"].dtype, torch.float32)

    def per_head(role: str) -> torch.Tensor:  # [H', ...] -> [H, ...]; memory j serves heads j*g .. j*g+g-1
        t = parts[role].to(dtype)
        return t if t.shape[0] == heads else t.repeat_interleave(heads // t.shape[0], dim=0)

    with torch.autocast(device_type=q.device.type, enabled=False):
        x = q.to(dtype) * c.query_scale
        if "feature.weight" in parts:
            x = torch.einsum("bhtd,hfd->bhtf", x, per_head("feature.weight"))
            if "feature.bias" in parts:
                x = x + per_head("feature.bias")[None, :, None, :]
        phi = FEATURE_MAPS[c.feature_map](x)
        out = torch.einsum("bhtf,hfv->bhtv", phi, per_head("memory"))
        if "normalizer" in parts:
            out = out / torch.einsum("bhtf,hf->bht", phi, per_head("normalizer"))[..., None]
        return c.memory_scale * out
