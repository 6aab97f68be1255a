"""The tuner."""

from __future__ import annotations

import contextlib
import copy
import re
from collections.abc import Iterator, Sequence
from typing import Any, ClassVar

import torch
from peft.tuners.tuners_utils import BaseTuner
from torch import nn

from ptplus._adapter import split_name
from ptplus._families import FAMILIES, family_of, is_attention
from ptplus._method import ATTRIBUTES, ROLES, Sizes, shapes
from ptplus.peft._config import PrefixTuningPlusConfig
from ptplus.peft._layer import NO_MERGE, PrefixTuningPlusLayer


class PrefixTuningPlusModel(BaseTuner):
    """Puts memories into the attention modules of a transformers model; see `PrefixTuningPlusConfig`."""

    prefix = "prefix_"
    tuner_layer_cls = PrefixTuningPlusLayer
    target_module_mapping: ClassVar[dict[str, list[str]]] = {}  # see `_attention_names`

    # -- which modules

    def _prepare_adapter_config(
        self, peft_config: PrefixTuningPlusConfig, model_config: dict[str, Any]
    ) -> PrefixTuningPlusConfig:
        """Fills in the sizes and the attention modules, or raises `ValueError` where configuration and model differ."""
        sizes = Sizes.of(self.model.config)
        sizes.check(vars(peft_config))
        for key, value in sizes._asdict().items():
            setattr(peft_config, key, value)
        if peft_config.features is None and peft_config.num_features not in (None, sizes.head_dim):
            # Of a canonical folder: other than D features are learned ones.
            peft_config.features = peft_config.num_features
        parts = shapes(sizes, peft_config.memory_sharing, peft_config.features, peft_config.feature_bias, peft_config.normalizer)
        peft_config.num_features = parts["memory"][1]
        layers = peft_config.layers_to_transform
        wanted = set(range(sizes.num_layers) if layers is None else layers)  # type: ignore[arg-type]
        if max(wanted) >= sizes.num_layers:
            raise ValueError(f"layers_to_transform: the model has {sizes.num_layers} layers, found {sorted(wanted)}")
        targets = self._attention_names(peft_config, wanted)
        peft_config.__dict__["_targets"] = targets
        if not peft_config.inference_mode:
            peft_config.prepare_for_training()
        return peft_config

    def _attention_names(self, peft_config: PrefixTuningPlusConfig, wanted: set[int]) -> set[str]:
        """Full names of the attention modules of the wanted layers, exactly one in each."""
        family = family_of(self.model.config)
        target = peft_config.target_modules
        if target is None and family is None:
            raise ValueError(
                f"model type {self.model.config.model_type!r}: name its attention modules in target_modules; known by "
                f"themselves are {', '.join(sorted(FAMILIES))}"
            )
        by_layer: dict[int, str] = {}
        wrong: list[str] = []
        inside: tuple[str, ...] = ()  # of attention modules that have memories already
        for name, module in self.model.named_modules():
            if name.startswith(inside) and inside:
                continue
            if isinstance(module, PrefixTuningPlusLayer):
                inside = (*inside, name + ".")
            if isinstance(target, str):
                matches = re.fullmatch(target, name) is not None
            elif target is not None:
                matches = any(name == t or name.endswith("." + t) for t in target)
            else:
                assert family is not None
                matches = re.fullmatch(family.attention, name) is not None
            if not matches:
                continue
            if not is_attention(module):
                wrong.append(name)
            elif by_layer.setdefault(int(module.layer_idx), name) != name:
                raise ValueError(f"target_modules: {name} and {by_layer[int(module.layer_idx)]} are of one layer")
        if wrong:
            raise ValueError(f"target_modules: expected attention modules of a decoder, found {', '.join(wrong[:5])}")
        missing = sorted(wanted - by_layer.keys())
        if missing:
            raise ValueError(f"target_modules: no attention module found in layers {missing}")
        return {by_layer[i] for i in wanted}

    @staticmethod
    def _check_target_module_exists(peft_config: PrefixTuningPlusConfig, key: str) -> bool:
        return key in peft_config.__dict__["_targets"]

    # -- layers

    def _create_and_replace(
        self,
        peft_config: PrefixTuningPlusConfig,
        adapter_name: str,
        target: nn.Module,
        target_name: str,
        parent: nn.Module,
        current_key: str,
        parameter_name: str | None = None,
    ) -> None:
        layer = target if isinstance(target, PrefixTuningPlusLayer) else PrefixTuningPlusLayer(target)
        parts = shapes(
            Sizes.of(self.model.config),
            peft_config.memory_sharing,
            peft_config.features,
            peft_config.feature_bias,
            peft_config.normalizer,
        )
        layer.add_adapter(adapter_name, peft_config.conventions(), parts, family_of(self.model.config))
        layer.set_adapter(self.active_adapters, inference_mode=peft_config.inference_mode)
        if layer is not target:
            self._replace_module(parent, target_name, layer, target)

    def _replace_module(self, parent: nn.Module, child_name: str, new_module: nn.Module, child: nn.Module) -> None:
        if isinstance(child, PrefixTuningPlusLayer):
            child.release()
        setattr(parent, child_name, new_module)

    @contextlib.contextmanager
    def _enable_peft_forward_hooks(self, *args: Any, **kwargs: Any) -> Iterator[None]:
        if kwargs.get("adapter_names") is not None:
            raise ValueError("adapter_names: Prefix-Tuning+ has no adapter for each row of a batch; use set_adapter")
        yield

    def _check_merge_allowed(self) -> None:
        raise ValueError(NO_MERGE)

    def _layers(self) -> dict[int, PrefixTuningPlusLayer]:
        return _layers(self.model)

    # -- several adapters

    def add_weighted_adapter(self, adapters: Sequence[str], weights: Sequence[float], adapter_name: str) -> None:
        """Adds an adapter that computes the weighted sum of others, exactly: the term is linear in M.

        Where the features are the same, memories are added up; memories of different sharing are repeated for the heads
        that they serve. Adapters with different learned feature maps, query scales or layers are put side by side as
        more features. Raises `ValueError` for what has no such form: other activations, taps or normalisers.
        """
        if adapter_name in self.peft_config:
            raise ValueError(f"there is an adapter {adapter_name!r} already")
        if not adapters or len(adapters) != len(weights):
            raise ValueError("expected a weight for each of one or more adapters")
        for name in adapters:
            if name not in self.peft_config:
                raise ValueError(f"there is no adapter {name!r}")
        configs = [self.peft_config[name] for name in adapters]
        for key in ("feature_map", "query_tap", "normalizer"):
            values = {getattr(c, key) for c in configs}
            if len(values) > 1:
                raise ValueError(f"{key}: a sum needs one and the same, found {', '.join(map(str, sorted(values)))}")
        combined = _Combination(self._layers(), configs, list(adapters), [float(w) for w in weights])
        config = copy.deepcopy(configs[0])
        config.__dict__.pop("_targets", None)
        config.other_keys = {}
        config.memory_sharing, config.query_scale, config.memory_scale = (
            combined.sharing,
            combined.query_scale,
            combined.memory_scale,
        )
        config.features, config.feature_bias = combined.features, combined.has_bias
        config.num_features = None
        config.layers_to_transform = None if len(combined.parts) == config.num_layers else sorted(combined.parts)
        config.inference_mode = True
        self.peft_config[adapter_name] = config
        try:
            self.inject_adapter(self.model, adapter_name)
        except Exception:
            del self.peft_config[adapter_name]
            raise
        with torch.no_grad():
            for i, parts in combined.parts.items():
                own = self._layers()[i].parts(adapter_name)
                for role, value in parts.items():
                    own[role].copy_(value)

    # -- files

    @classmethod
    def _remap_adapter_state_dict_for_load(
        cls, model: nn.Module, config: PrefixTuningPlusConfig, adapter_name: str, state_dict: dict[str, torch.Tensor]
    ) -> dict[str, torch.Tensor]:
        """PEFT's names or the canonical ones to those of the model.

        The tensors say which parts there are: a canonical adapter_config.json does not. Raises `ValueError` where a tensor
        is missing or left over, or has another shape.
        """
        layers = {i: m for i, m in _layers(model).items() if adapter_name in m.conventions}
        names = {id(m): name for name, m in model.named_modules() if isinstance(m, PrefixTuningPlusLayer)}
        found: dict[int, dict[str, torch.Tensor]] = {}
        rest: dict[str, torch.Tensor] = {}
        for key, value in state_dict.items():
            place = _place(key, {names[id(m)]: i for i, m in layers.items()})
            if place is None:
                rest[key] = value
            else:
                found.setdefault(place[0], {})[place[1]] = value
        # What is neither a memory nor looks like one is a module that was trained besides.
        left_over = [k for k in rest if k.rpartition(".")[2] in ATTRIBUTES.values() or k.startswith("layers.")]
        if left_over or found.keys() != layers.keys():
            missing = [f"layer {i}" for i in sorted(layers.keys() - found.keys())]
            raise ValueError(
                f"the weights do not fit the adapter {adapter_name!r}: missing {', '.join(missing) or 'none'}; left over "
                f"{', '.join(left_over[:5]) or 'none'}"
            )
        _adopt_parts(layers, config, adapter_name, found)
        for i, parts in found.items():
            for role, value in parts.items():
                rest[f"{names[id(layers[i])]}.{ATTRIBUTES[role]}.{adapter_name}"] = value
        return rest


def _layers(model: nn.Module) -> dict[int, PrefixTuningPlusLayer]:
    """By number."""
    return {int(m.layer_idx): m for m in model.modules() if isinstance(m, PrefixTuningPlusLayer)}


def _place(key: str, layers: dict[str, int]) -> tuple[int, str] | None:
    """The layer and role of a tensor of a checkpoint: at the attention module of that name, or by a canonical name."""
    owner, _, attribute = key.rpartition(".")
    for role, name in ATTRIBUTES.items():
        if attribute == name:
            # With and without `base_model.model.`: the model may or may not be wrapped.
            for layer, i in layers.items():
                if owner == layer or owner.endswith("." + layer) or layer.endswith("." + owner):
                    return i, role
            return None
    try:
        number, role = split_name(key)
    except ValueError:
        return None
    return (number, role) if number in layers.values() else None


def _adopt_parts(
    layers: dict[int, PrefixTuningPlusLayer],
    config: PrefixTuningPlusConfig,
    adapter_name: str,
    found: dict[int, dict[str, torch.Tensor]],
) -> None:
    """Gives the layers the parts that a file has, where the configuration could not say so."""
    roles = {frozenset(parts) for parts in found.values()}
    if len(roles) != 1 or "memory" not in next(iter(roles)):
        raise ValueError(f"adapter {adapter_name!r}: every layer has the same parts, and a memory; found {roles}")
    has = next(iter(roles))
    if "feature.bias" in has and "feature.weight" not in has:
        raise ValueError(f"adapter {adapter_name!r}: a feature bias without feature weights")
    first = next(iter(found.values()))
    sizes = config.sizes()
    features = first["memory"].shape[1] if "feature.weight" in has and first["memory"].ndim == 3 else None
    expected = shapes(sizes, config.memory_sharing, features, "feature.bias" in has, "normalizer" in has)
    for i, parts in found.items():
        for role, value in parts.items():
            if tuple(value.shape) != expected[role]:
                raise ValueError(f"layers.{i}.{role}: expected {list(expected[role])}, found {list(value.shape)}")
    stated = (config.features, config.feature_bias, config.normalizer)
    actual = (features, "feature.bias" in has, "normalizer" in has)
    lacking = [s for s, a in zip(stated, actual, strict=True) if s not in (None, False) and s != a]
    if lacking:
        raise ValueError(
            f"adapter {adapter_name!r}: the configuration states features, feature_bias, normalizer {stated}, found {actual}"
        )
    if stated == actual:
        return
    config.features, config.feature_bias, config.normalizer = actual
    config.num_features = expected["memory"][1]
    for layer in layers.values():
        is_trained = any(p.requires_grad for p in layer.parts(adapter_name).values())
        layer.add_adapter(adapter_name, layer.conventions[adapter_name], expected, family_of(layer.config))
        for p in layer.parts(adapter_name).values():
            p.requires_grad_(is_trained)


class _Combination:
    """A weighted sum of adapters as one: sharing, scales, features, and parts by layer."""

    def __init__(
        self,
        layers: dict[int, PrefixTuningPlusLayer],
        configs: list[PrefixTuningPlusConfig],
        adapters: list[str],
        weights: list[float],
    ) -> None:
        finest = min((c.memory_sharing for c in configs), key=["per_head", "per_kv_head", "shared"].index)
        self.sharing: str = finest
        self.heads = configs[0].sizes().memories(finest)
        scales = {c.memory_scale for c in configs}
        self.memory_scale: float = scales.pop() if len(scales) == 1 else 1.0
        factors = [
            w * c.memory_scale / self.memory_scale if c.memory_scale != self.memory_scale else w
            for w, c in zip(weights, configs, strict=True)
        ]
        by_layer = {i: [m.parts(a) for a in adapters] for i, m in layers.items()}
        by_layer = {i: parts for i, parts in by_layer.items() if any(parts)}
        self.query_scale: float = configs[0].query_scale
        is_same = len({(c.query_scale, c.features, c.feature_bias) for c in configs}) == 1 and all(
            self._have_same_features([p for p in parts if p]) for parts in by_layer.values()
        )
        if is_same:
            self.parts = {i: self._added(parts, factors) for i, parts in by_layer.items()}
        else:
            if configs[0].normalizer:
                raise ValueError("normalizer: adapters with different features or normalisers have no common denominator")
            self.query_scale = 1.0
            self.parts = {i: self._side_by_side(parts, factors, configs) for i, parts in by_layer.items()}
        first = next(iter(self.parts.values()))
        self.has_bias = "feature.bias" in first
        self.features: int | None = first["memory"].shape[1] if "feature.weight" in first else None

    def _expanded(self, t: torch.Tensor) -> torch.Tensor:
        return t if t.shape[0] == self.heads else t.repeat_interleave(self.heads // t.shape[0], dim=0)

    def _have_same_features(self, parts: list[dict[str, torch.Tensor]]) -> bool:
        first = parts[0]
        return all(
            p.keys() == first.keys()
            and all(torch.equal(self._expanded(p[r]), self._expanded(first[r])) for r in ROLES if r != "memory" and r in first)
            for p in parts
        )

    def _added(self, parts: list[dict[str, torch.Tensor]], factors: list[float]) -> dict[str, torch.Tensor]:
        present = [(p, f) for p, f in zip(parts, factors, strict=True) if p]
        out = {role: self._expanded(t).detach().clone() for role, t in present[0][0].items()}
        out["memory"] = sum(self._expanded(p["memory"]).detach() * f for p, f in present)  # type: ignore[assignment]
        return out

    def _side_by_side(
        self, parts: list[dict[str, torch.Tensor]], factors: list[float], configs: list[PrefixTuningPlusConfig]
    ) -> dict[str, torch.Tensor]:
        memories, weights, biases = [], [], []
        for part, factor, config in zip(parts, factors, configs, strict=True):
            if part:
                memory = self._expanded(part["memory"]).detach() * factor
            else:  # this adapter does not adapt the layer: its features count for nothing, and keep all layers of one size
                f = config.num_features
                memory = torch.zeros(self.heads, f, config.head_dim, device=next(p for p in parts if p)["memory"].device)
            identity = torch.eye(config.head_dim, device=memory.device).expand(self.heads, -1, -1)
            weight = self._expanded(part["feature.weight"]).detach() if "feature.weight" in part else identity
            if weight.shape[1] != memory.shape[1]:
                weight = torch.zeros(self.heads, memory.shape[1], config.head_dim, device=memory.device)
            bias = part.get("feature.bias")
            zeros = torch.zeros(memory.shape[:2], device=memory.device)
            memories.append(memory)
            weights.append(weight * config.query_scale)
            biases.append(zeros if bias is None else self._expanded(bias).detach())
        out = {"memory": torch.cat(memories, 1), "feature.weight": torch.cat(weights, 1)}
        if any(c.feature_bias for c in configs):
            out["feature.bias"] = torch.cat(biases, 1)
        return out
