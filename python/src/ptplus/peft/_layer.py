"""The tuner's layer: an attention module with memories beside it."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn

from ptplus import _attention
from ptplus._families import Family
from ptplus._method import ATTRIBUTES, ROLES, Conventions, initial, term

NO_MERGE = (
    "a Prefix-Tuning+ adapter cannot be merged: phi(q) M depends on the query of every token, and no weight of the base "
    "can hold it. Keep it beside the base: save_pretrained, then `ptplus convert`, which llama.cpp takes; unload() gives "
    "the plain base back"
)


ROUNDED_MEMORIES = (
    "memories are trained in 16 bits, where small updates vanish (TRL turns them so for quantized bases): before training, "
    "for p in model.parameters(): p.data = p.data.float() if p.requires_grad else p.data"
)


class PrefixTuningPlusLayer(nn.Module, BaseTunerLayer):
    """Wraps an attention module and adds the terms of the active adapters to what attention gives its output projection.

    Parameters, by adapter: `prefix_memory` [H', F, D_v], and where the adapter has them `prefix_feature_weight`
    [H', F, D], `prefix_feature_bias` [H', F], `prefix_normalizer` [H', F].
    """

    adapter_layer_names = tuple(ATTRIBUTES.values())
    other_param_names = ("conventions",)

    def __init__(self, base_layer: nn.Module) -> None:
        super().__init__()
        self.base_layer = base_layer
        for name in self.adapter_layer_names:
            self.add_module(name, nn.ParameterDict())
        self.conventions: dict[str, Conventions] = {}
        self._active_adapter: list[str] = []
        self._disable_adapters = False
        self.merged_adapters: list[str] = []

    def add_adapter(
        self, name: str, conventions: Conventions, shapes: Mapping[str, tuple[int, ...]], family: Family | None
    ) -> None:
        """Adds an adapter's fresh parameters. `family`: how to tap the query, for conventions that want it before RoPE."""
        if conventions.query_tap == "pre_rope" and family is None:
            raise ValueError("query_tap pre_rope: it is not known where this model's query is before its rotation")
        _attention.prepare(self.base_layer, family if conventions.query_tap == "pre_rope" else None)
        self.conventions[name] = conventions
        device = next((p.device for p in self.base_layer.parameters()), None)
        for role in ROLES:
            held = getattr(self, ATTRIBUTES[role])
            if role in shapes:
                held[name] = nn.Parameter(initial(role, shapes[role], device))
            elif name in held:
                del held[name]

    def parts(self, adapter: str) -> dict[str, torch.Tensor]:
        """The parameters of an adapter, by role; empty where it does not adapt this layer."""
        held = {role: getattr(self, attribute) for role, attribute in ATTRIBUTES.items()}
        return {role: d[adapter] for role, d in held.items() if adapter in d}

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        active = [] if self.disable_adapters else [a for a in self.active_adapters if a in self.conventions]
        if not active:
            return self.base_layer(*args, **kwargs)
        call = _attention.Call(self._term)
        out = self.base_layer(*args, ptplus_call=call, **kwargs)
        call.check()
        return out

    def _term(self, query: torch.Tensor, before_rope: torch.Tensor | None) -> torch.Tensor:
        """The sum over the active adapters."""
        total: torch.Tensor | None = None
        for adapter in self.active_adapters:
            if adapter not in self.conventions:
                continue
            conventions = self.conventions[adapter]
            q = query
            if conventions.query_tap == "pre_rope":
                assert before_rope is not None
                q = before_rope
            parts = self.parts(adapter)
            memory = parts["memory"]
            if self.training and memory.requires_grad and memory.dtype in (torch.float16, torch.bfloat16):
                warnings.warn(ROUNDED_MEMORIES, stacklevel=2)
            one = term(q, parts, conventions)
            total = one if total is None else total + one
        assert total is not None
        return total

    def release(self) -> nn.Module:
        """The attention module as it was."""
        _attention.release(self.base_layer)
        return self.base_layer

    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
        raise ValueError(NO_MERGE)

    def unmerge(self) -> None:
        raise ValueError(NO_MERGE)

    def supports_lora_conversion(self, adapter_name: str = "default") -> bool:
        return False

    def _get_base_layer_device_and_dtype(self, base_layer: nn.Module) -> tuple[torch.device | None, None]:
        # Attention has no weight of its own. No type: memories stay F32.
        return next((p.device for p in base_layer.parameters()), None), None

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            # What a decoder asks of its attention (`layer_idx`, `is_sliding`).
            if name == "base_layer":
                raise
            return getattr(self.base_layer, name)

    def __repr__(self) -> str:
        return "prefix_tuning_plus." + super().__repr__()
