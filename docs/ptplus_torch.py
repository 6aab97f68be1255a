# SPDX-License-Identifier: MIT OR Apache-2.0
# Copyright (c) 2026 the ptplus authors
"""Prefix-Tuning+ adapters in training code: save them, record what they compute, and bring them back.

Drop this file into your project. Needs torch, safetensors and transformers (4.48 or later), nothing else.

    from ptplus_torch import new_adapter, attach, save_adapter, save_probe, load_adapter

    adapter = attach(model, new_adapter(model, feature_map="elu"))     # trainable; the base can stay frozen
    ...train adapter.parameters()...
    save_adapter(adapter, "out/adapter")                               # the canonical folder that ptplus reads
    save_probe(model, input_ids, "out/probe.safetensors")              # what this model computes, for `ptplus verify`

    adapter = attach(model, load_adapter("out/adapter"))               # also what `ptplus convert --to safetensors` wrote

Per layer and query head h, with q the query as attention uses it (after RoPE, not scaled by 1/sqrt(d)):

    o[h] = attention[h] + memory_scale * phi(query_scale * q[h]) @ M[h]
    phi(x) = act(x), or with a learned feature map act(x @ W[h].T + b[h]); optionally divided by phi(q[h]) . N[h]

Shapes: M [H', F, D_v], W [H', F, D], b [H', F], N [H', F]; H' is the number of query heads (per_head), of key/value
heads (per_kv_head) or 1 (shared). Source of the method: arXiv 2506.13674.
"""
import importlib
import json
import math
import os

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

FEATURE_MAPS = {
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
CONVENTIONS = ("feature_map", "query_tap", "query_scale", "memory_scale", "memory_sharing")
_IMPLEMENTATION = "ptplus"


class Adapter(torch.nn.Module):
    """Configuration (the keys of adapter_config.json) and parameters, by layer and role."""

    def __init__(self, config, tensors):
        """`tensors`: {"layers.{i}.memory": tensor, ...}"""
        super().__init__()
        for key in CONVENTIONS:
            if config.get(key) is None:
                raise ValueError(f"adapter_config.json does not state {key}; it has no default")
        for key, known in (("feature_map", FEATURE_MAPS), ("query_tap", QUERY_TAPS), ("memory_sharing", SHARINGS)):
            if config[key] not in known:
                raise ValueError(f"{key}: expected one of {', '.join(known)}, found {config[key]!r}")
        self.config = dict(config)
        self.enabled = True
        self._record = None
        self._parts = {}
        for name in sorted(tensors):
            _, layer, role = _split(name)
            parameter = torch.nn.Parameter(tensors[name])
            self.register_parameter(name.replace(".", "_"), parameter)
            self._parts.setdefault(layer, {})[role] = name.replace(".", "_")
        for layer, parts in self._parts.items():
            if "memory" not in parts:
                raise ValueError(f"layer {layer} has no memory")

    def layers(self):
        """The adapted layers, ascending."""
        return sorted(self._parts)

    def part(self, layer, role):
        """The parameter that plays `role` in `layer`, or None."""
        name = self._parts.get(layer, {}).get(role)
        return None if name is None else getattr(self, name)

    def tensors(self):
        """{"layers.{i}.{role}": tensor}, in the order in which they are saved."""
        return {f"layers.{i}.{r}": self.part(i, r) for i in self.layers() for r in ROLES if self.part(i, r) is not None}

    def term(self, layer, q):
        """q [B, H, T, D] at the tap -> the additive term [B, H, T, D_v], in the type of the parameters."""
        c, heads = self.config, q.shape[1]

        def per_head(t):  # [H', ...] -> [H, ...]; memory j serves heads j*g .. j*g+g-1
            return t if t.shape[0] == heads else t.repeat_interleave(heads // t.shape[0], dim=0)

        memory = per_head(self.part(layer, "memory"))
        x = q.to(memory.dtype) * c["query_scale"]
        weight, bias = self.part(layer, "feature.weight"), self.part(layer, "feature.bias")
        if weight is not None:
            x = torch.einsum("bhtd,hfd->bhtf", x, per_head(weight))
            if bias is not None:
                x = x + per_head(bias)[None, :, None, :]
        phi = FEATURE_MAPS[c["feature_map"]](x)
        out = torch.einsum("bhtf,hfv->bhtv", phi, memory)
        normalizer = self.part(layer, "normalizer")
        if normalizer is not None:
            out = out / torch.einsum("bhtf,hf->bht", phi, per_head(normalizer))[..., None]
        return c["memory_scale"] * out


def _split(name):
    """"layers.3.feature.weight" -> ("layers", 3, "feature.weight")"""
    head, layer, role = name.split(".", 2)
    if head != "layers" or not layer.isdecimal() or role not in ROLES:
        raise ValueError(f"{name!r} is no tensor of a canonical adapter; `ptplus convert` imports other layouts")
    return head, int(layer), role


def _head_dim(config):
    return getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads


def new_adapter(model, feature_map="elu", query_tap="post_rope", query_scale=1.0, memory_scale=1.0,
                memory_sharing="per_head", layers=None, features=None, bias=False, normalizer=False,
                dtype=torch.float32):
    """A fresh adapter for `model`: memories 0, so that training starts from the plain base.

    `features`: number of learned features (adds W, and b with `bias`); None for phi = act alone.
    """
    c, d = model.config, _head_dim(model.config)
    kv_heads = getattr(c, "num_key_value_heads", None) or c.num_attention_heads
    heads = {"per_head": c.num_attention_heads, "per_kv_head": kv_heads, "shared": 1}[memory_sharing]
    adapted = range(c.num_hidden_layers) if layers is None else layers
    device, f = next(model.parameters()).device, features or d
    tensors = {}
    for i in adapted:
        tensors[f"layers.{i}.memory"] = torch.zeros(heads, f, d, dtype=dtype, device=device)
        if features is not None:
            tensors[f"layers.{i}.feature.weight"] = torch.randn(heads, f, d, dtype=dtype, device=device) / math.sqrt(d)
            if bias:
                tensors[f"layers.{i}.feature.bias"] = torch.zeros(heads, f, dtype=dtype, device=device)
        if normalizer:
            tensors[f"layers.{i}.normalizer"] = torch.ones(heads, f, dtype=dtype, device=device)
    return Adapter({
        "peft_type": "PREFIX_TUNING_PLUS", "task_type": "CAUSAL_LM",
        # A trainer's absolute path helps nobody else; ptplus shows it and never opens it.
        "base_model_name_or_path": getattr(c, "_name_or_path", "") or None,
        "inference_mode": True,
        "feature_map": feature_map, "query_tap": query_tap, "query_scale": float(query_scale),
        "memory_scale": float(memory_scale), "memory_sharing": memory_sharing,
        "num_layers": c.num_hidden_layers, "num_attention_heads": c.num_attention_heads,
        "num_key_value_heads": kv_heads, "head_dim": d, "num_features": f,
        "layers_to_transform": None if layers is None else list(layers),
        "base_model_type": c.model_type,
    }, tensors)


def save_adapter(adapter, folder):
    """Writes the canonical folder: adapter_model.safetensors and adapter_config.json."""
    tensors = {name: t.detach().cpu().contiguous() for name, t in adapter.tensors().items()}
    for name, t in tensors.items():
        if not torch.isfinite(t).all():
            raise ValueError(f"{name} holds NaN or Inf")
    os.makedirs(folder, exist_ok=True)
    save_file(tensors, os.path.join(folder, "adapter_model.safetensors"), metadata={"format": "pt"})
    with open(os.path.join(folder, "adapter_config.json"), "w", encoding="utf-8") as f:
        f.write(json.dumps(adapter.config, indent=2) + "\n")


def load_adapter(folder, dtype=None, device=None):
    """Reads a canonical folder. `dtype=torch.float32` to train on an adapter that is stored in 16 bits."""
    with open(os.path.join(folder, "adapter_config.json"), encoding="utf-8") as f:
        config = json.load(f)
    if config.get("peft_type") != "PREFIX_TUNING_PLUS":
        raise ValueError(f"peft_type: expected PREFIX_TUNING_PLUS, found {config.get('peft_type')!r}")
    tensors = load_file(os.path.join(folder, "adapter_model.safetensors"))
    return Adapter(config, {name: t.to(dtype=dtype, device=device) for name, t in tensors.items()})


def attach(model, adapter):
    """Puts the adapter's term into every attention of `model` (one adapter at a time) and returns the adapter.

    Works on models whose attention goes through transformers' attention interface and whose decoder is `model.model`:
    Llama, Mistral, Qwen2, Qwen3. Their eager attention computes the rest. The adapter is also `model.ptplus_adapter`.
    """
    c, d = model.config, _head_dim(model.config)
    kv_heads = getattr(c, "num_key_value_heads", None) or c.num_attention_heads
    for key, has in (("num_layers", c.num_hidden_layers), ("num_attention_heads", c.num_attention_heads),
                     ("num_key_value_heads", kv_heads), ("head_dim", d), ("base_model_type", c.model_type)):
        if adapter.config.get(key) not in (None, has):
            raise ValueError(f"{key}: expected {has!r}, as the model has, found {adapter.config[key]!r}")
    heads = {"per_head": c.num_attention_heads, "per_kv_head": kv_heads, "shared": 1}[adapter.config["memory_sharing"]]
    for i in adapter.layers():
        memory = adapter.part(i, "memory")
        if i >= c.num_hidden_layers or memory.shape[0] != heads or memory.shape[2] != d:
            raise ValueError(f"layers.{i}.memory: expected [{heads}, F, {d}] below layer {c.num_hidden_layers}, found {tuple(memory.shape)}")
    detach(model)
    eager = importlib.import_module(type(model).__module__).eager_attention_forward
    taps, hooks = {}, []
    if adapter.config["query_tap"] == "pre_rope":  # after the query's bias and norm
        for layer in model.model.layers:
            a = layer.self_attn
            hook = lambda mod, inp, out, i=a.layer_idx: taps.__setitem__(
                i, out.reshape(out.shape[0], out.shape[1], -1, d).transpose(1, 2))
            hooks.append(getattr(a, "q_norm", a.q_proj).register_forward_hook(hook))

    def attention(module, query, key, value, attention_mask, **kw):
        out, weights = eager(module, query, key, value, attention_mask, **kw)  # [B, T, H, D_v]
        adapter = getattr(module, "_ptplus_adapter", None)
        if adapter is not None and adapter.enabled and module.layer_idx in adapter._parts:
            term = adapter.term(module.layer_idx, taps[module.layer_idx] if taps else query)
            if adapter._record is not None:
                adapter._record[module.layer_idx] = (query.detach().float().cpu(), term.detach().float().cpu())
            out = out + term.transpose(1, 2).to(out.dtype)
        return out, weights

    # One implementation per model: two models in one process may carry different adapters.
    name = f"{_IMPLEMENTATION}_{id(model)}"
    ALL_ATTENTION_FUNCTIONS.register(name, attention)
    from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
    ALL_MASK_ATTENTION_FUNCTIONS.register(name, ALL_MASK_ATTENTION_FUNCTIONS["eager"])
    before = model.config._attn_implementation
    model.config._attn_implementation = name
    for layer in model.model.layers:
        object.__setattr__(layer.self_attn, "_ptplus_adapter", adapter)  # not a submodule of the base
    object.__setattr__(model, "ptplus_adapter", adapter)
    object.__setattr__(model, "_ptplus_undo", (before, hooks))
    return adapter


def detach(model):
    """Removes the adapter: the plain base again."""
    undo = getattr(model, "_ptplus_undo", None)
    if undo is None:
        return
    before, hooks = undo
    for hook in hooks:
        hook.remove()
    model.config._attn_implementation = before
    for layer in model.model.layers:
        object.__setattr__(layer.self_attn, "_ptplus_adapter", None)
    object.__delattr__(model, "ptplus_adapter")
    object.__delattr__(model, "_ptplus_undo")


@torch.no_grad()
def save_probe(model, input_ids, path, positions=None, taps=True):
    """Records what `model` with its attached adapter computes on `input_ids` [B, T], rows without padding.

    `positions`: those whose logits are kept (a vocabulary of 150,000 makes 0.6 MB each); None keeps all.
    `taps`: also keep every adapted layer's query and term, with which ptplus finds unknown conventions in seconds.
    Run it in float32 (`model.float()`): a probe in half precision hides small differences.
    """
    adapter = getattr(model, "ptplus_adapter", None)
    if adapter is None:
        raise ValueError("the model has no adapter: attach one first")
    was_training, was_enabled = model.training, adapter.enabled
    model.eval()
    ids = torch.as_tensor(input_ids, dtype=torch.long, device=next(model.parameters()).device)
    ids = ids[None] if ids.ndim == 1 else ids
    keep = torch.arange(ids.shape[1]) if positions is None else torch.as_tensor(sorted(set(positions)), dtype=torch.long)
    try:
        adapter.enabled = False
        base_logits = model(ids, use_cache=False).logits[:, keep.to(ids.device)]
        adapter.enabled, adapter._record = True, {} if taps else None
        logits = model(ids, use_cache=False).logits[:, keep.to(ids.device)]
        recorded = adapter._record or {}
    finally:
        adapter._record, adapter.enabled = None, was_enabled
        model.train(was_training)
    tensors = {"input_ids": ids.cpu().contiguous(), "logits": logits.float().cpu().contiguous(),
               "base_logits": base_logits.float().cpu().contiguous()}
    if positions is not None:
        tensors["positions"] = keep
    for layer, (q, term) in recorded.items():
        tensors[f"q.{layer}"], tensors[f"term.{layer}"] = q.contiguous(), term.contiguous()
    for name, t in tensors.items():
        if t.is_floating_point() and not torch.isfinite(t).all():
            raise ValueError(f"{name} holds NaN or Inf")
    if torch.equal(tensors["logits"], tensors["base_logits"]):
        raise ValueError("the adapter changes nothing: a probe of it would prove nothing")
    save_file(tensors, path)
