"""Adapters in plain training code, without PEFT.

adapter = ptplus.attach(model, ptplus.new_adapter(model, feature_map="elu"))   # trainable; freeze the base yourself
...train adapter.parameters()...
ptplus.save_adapter(adapter, "out/adapter")                # the canonical folder that the program reads
ptplus.save_probe(model, input_ids, "out/probe.safetensors")

adapter = ptplus.attach(model, ptplus.load_adapter("out/adapter"))   # also what `convert --to safetensors` wrote
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from ptplus import _attention
from ptplus._families import attention_modules, family_of
from ptplus._method import ATTRIBUTES, PEFT_TYPE, ROLES, Conventions, Sizes, initial, shapes, term

_ROLE_OF = {attribute: role for role, attribute in ATTRIBUTES.items()}


class _Part(torch.nn.Module):
    """The parameters of one layer, named by role: `memory`, `feature.weight`, `feature.bias`, `normalizer`."""

    def __init__(self, tensors: Mapping[str, torch.Tensor]) -> None:
        super().__init__()
        for role in ROLES:
            if role in tensors:
                owner, _, name = role.rpartition(".")
                if owner and not hasattr(self, owner):
                    self.add_module(owner, torch.nn.Module())
                self.get_submodule(owner).register_parameter(name, torch.nn.Parameter(tensors[role]))


class Adapter(torch.nn.Module):
    """Configuration (the keys of adapter_config.json) and parameters.

    Its state dict has the canonical names: `layers.{i}.memory` [H', F, D_v], `layers.{i}.feature.weight` [H', F, D],
    `layers.{i}.feature.bias` [H', F], `layers.{i}.normalizer` [H', F].
    """

    def __init__(self, config: Mapping[str, Any], tensors: Mapping[str, torch.Tensor]) -> None:
        """`tensors`: {"layers.{i}.memory": tensor, ...}. Raises `ValueError` for conventions or names that are none."""
        super().__init__()
        self.config = dict(config)
        self.conventions = Conventions.of(config)
        self.enabled = True
        by_layer: dict[int, dict[str, torch.Tensor]] = {}
        for name in tensors:
            layer, role = split_name(name)
            by_layer.setdefault(layer, {})[role] = tensors[name]
        for layer, parts in by_layer.items():
            if "memory" not in parts:
                raise ValueError(f"layer {layer} has no memory")
        self.layers = torch.nn.ModuleDict({str(i): _Part(by_layer[i]) for i in sorted(by_layer)})

    def adapted_layers(self) -> list[int]:
        """Ascending."""
        return [int(i) for i in self.layers]

    def parts(self, layer: int) -> dict[str, torch.Tensor]:
        """The parameters of a layer, by role."""
        return dict(self.layers[str(layer)].named_parameters())

    def tensors(self) -> dict[str, torch.Tensor]:
        """{"layers.{i}.{role}": tensor}, in the order in which they are saved."""
        return {f"layers.{i}.{r}": self.parts(i)[r] for i in self.adapted_layers() for r in ROLES if r in self.parts(i)}

    def term(self, layer: int, q: torch.Tensor) -> torch.Tensor:
        """q [B, H, T, D] at the tap -> the additive term [B, H, T, D_v]."""
        return term(q, self.parts(layer), self.conventions)


def split_name(name: str) -> tuple[int, str]:
    """Layer and role of a canonical name, or of one that PEFT saves.

    "layers.3.feature.weight", "base_model.model.model.layers.3.self_attn.prefix_feature_weight" -> (3, "feature.weight").
    Raises `ValueError` for a name of another layout.
    """
    canonical = re.fullmatch(r"layers\.(\d+)\.(.+)", name)
    if canonical and canonical[2] in ROLES:
        return int(canonical[1]), canonical[2]
    saved_by_peft = re.fullmatch(r"(?:.+\.)?layers\.(\d+)\.[^.]+\.([^.]+)", name)
    if saved_by_peft and saved_by_peft[2] in _ROLE_OF:
        return int(saved_by_peft[1]), _ROLE_OF[saved_by_peft[2]]
    raise ValueError(
        f"{name!r} is no tensor of a canonical adapter: `ptplus convert CHECKPOINT -o FOLDER --to safetensors` imports others"
    )


def new_adapter(
    model: torch.nn.Module,
    feature_map: str = "elu",
    query_tap: str = "post_rope",
    query_scale: float = 1.0,
    memory_scale: float = 1.0,
    memory_sharing: str = "per_head",
    layers: Iterable[int] | None = None,
    features: int | None = None,
    bias: bool = False,
    normalizer: bool = False,
) -> Adapter:
    """A fresh adapter for `model`, F32: memories 0, so that training starts from the plain base.

    `features`: number of learned features (adds W, and b with `bias`); None for phi = act alone.
    """
    sizes = Sizes.of(model.config)
    parts = shapes(sizes, memory_sharing, features, bias, normalizer)
    stated = None if layers is None else sorted(set(layers))
    device = next(model.parameters()).device
    return Adapter(
        {
            "peft_type": PEFT_TYPE,
            "task_type": "CAUSAL_LM",
            # A trainer's absolute path helps nobody else; ptplus shows it and never opens it.
            "base_model_name_or_path": getattr(model.config, "_name_or_path", "") or None,
            "inference_mode": True,
            "feature_map": feature_map,
            "query_tap": query_tap,
            "query_scale": float(query_scale),
            "memory_scale": float(memory_scale),
            "memory_sharing": memory_sharing,
            **sizes._asdict(),
            "num_features": parts["memory"][1],
            "layers_to_transform": stated,
        },
        {
            f"layers.{i}.{role}": initial(role, shape, device)
            for i in (range(sizes.num_layers) if stated is None else stated)
            for role, shape in parts.items()
        },
    )


def save_adapter(adapter: Adapter, folder: str | os.PathLike[str]) -> None:
    """Writes the canonical folder: adapter_model.safetensors and adapter_config.json.

    Raises `ValueError` for NaN and Inf.
    """
    tensors = {name: t.detach().cpu().contiguous() for name, t in adapter.tensors().items()}
    for name, t in tensors.items():
        if not torch.isfinite(t).all():
            raise ValueError(f"{name} holds NaN or Inf")
    os.makedirs(folder, exist_ok=True)
    save_file(tensors, os.path.join(folder, "adapter_model.safetensors"), metadata={"format": "pt"})
    with open(os.path.join(folder, "adapter_config.json"), "w", encoding="utf-8") as f:
        f.write(json.dumps(adapter.config, indent=2) + "\n")


def load_adapter(
    folder: str | os.PathLike[str], dtype: torch.dtype | None = None, device: str | torch.device | None = None
) -> Adapter:
    """Reads a canonical folder, or one that PEFT saved. `dtype=torch.float32` to train on an adapter that is stored in 16 bits.

    Raises `ValueError` for a folder of another kind or layout.
    """
    with open(os.path.join(folder, "adapter_config.json"), encoding="utf-8") as f:
        config = json.load(f)
    if config.get("peft_type") != PEFT_TYPE:
        raise ValueError(f"peft_type: expected {PEFT_TYPE}, found {config.get('peft_type')!r}")
    tensors = load_file(os.path.join(folder, "adapter_model.safetensors"))
    canonical = {"layers.{}.{}".format(*split_name(name)): t for name, t in tensors.items()}
    return Adapter(config, {name: t.to(dtype=dtype, device=device) for name, t in canonical.items()})


def attach(model: torch.nn.Module, adapter: Adapter) -> Adapter:
    """Puts the adapter's term into every attention of `model` (one adapter at a time) and returns the adapter.

    The adapter becomes the submodule `model.ptplus_adapter`: optimizers and trainers that take the model's parameters
    train it, and the model's checkpoints hold it. The base is not frozen: call `model.requires_grad_(False)` before.
    Raises `ValueError` where adapter and model do not fit.
    """
    sizes = Sizes.of(model.config)
    sizes.check(adapter.config)
    modules = attention_modules(model)
    heads = sizes.memories(adapter.conventions.memory_sharing)
    for i in adapter.adapted_layers():
        memory = adapter.parts(i)["memory"]
        if i not in modules or memory.shape[0] != heads or memory.shape[2] != sizes.head_dim:
            raise ValueError(
                f"layers.{i}.memory: expected [{heads}, F, {sizes.head_dim}] below layer {sizes.num_layers}, "
                f"found {tuple(memory.shape)}"
            )
    detach(model)
    model.add_module("ptplus_adapter", adapter)
    is_pre_rope = adapter.conventions.query_tap == "pre_rope"
    undo = []
    for i in adapter.adapted_layers():
        _attention.prepare(modules[i], family_of(model.config) if is_pre_rope else None)
        undo += [
            modules[i].register_forward_pre_hook(_Before(adapter, i), with_kwargs=True),
            modules[i].register_forward_hook(_after, with_kwargs=True),
        ]
    object.__setattr__(model, "_ptplus_undo", (undo, [modules[i] for i in adapter.adapted_layers()]))
    return adapter


def detach(model: torch.nn.Module) -> None:
    """Removes the adapter: the plain base again."""
    if not hasattr(model, "_ptplus_undo"):
        return
    hooks, modules = model._ptplus_undo
    for hook in hooks:
        hook.remove()
    for module in modules:
        _attention.release(module)
    object.__delattr__(model, "_ptplus_undo")
    del model.ptplus_adapter


class _Before:
    """Before attention runs: the call that asks for this layer's term."""

    def __init__(self, adapter: Adapter, layer: int) -> None:
        self.adapter = adapter
        self.layer = layer

    def __call__(self, module: torch.nn.Module, args: Any, kwargs: dict[str, Any]) -> Any:
        if not self.adapter.enabled:
            return args, kwargs
        return args, {**kwargs, "ptplus_call": _attention.Call(self.term)}

    def term(self, query: torch.Tensor, before_rope: torch.Tensor | None) -> torch.Tensor:
        return self.adapter.term(self.layer, query if before_rope is None else before_rope)


def _after(module: torch.nn.Module, args: Any, kwargs: dict[str, Any], output: Any) -> None:
    call = kwargs.get("ptplus_call")
    if call is not None:
        call.check()
