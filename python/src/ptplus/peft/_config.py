"""The configuration: the keys of adapter_config.json."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from peft import PeftConfig

from ptplus._method import Conventions, Sizes
from ptplus.peft._register import peft_type

# Says that weights were once rounded; not true of what is trained further.
_OF_STORED_WEIGHTS = ("ptplus_widened_from",)


@dataclass
class _Fields(PeftConfig):
    feature_map: str = field(
        default="elu",
        metadata={
            "help": "phi's activation: identity, elu, elu_plus_one, relu, silu, gelu, gelu_tanh, softplus, sigmoid, tanh or exp."
        },
    )
    query_tap: str = field(
        default="post_rope",
        metadata={"help": "Where the query is taken: post_rope (as attention uses it) or pre_rope (before its rotation)."},
    )
    query_scale: float = field(default=1.0, metadata={"help": "Factor on the query."})
    memory_scale: float = field(default=1.0, metadata={"help": "Factor on the term."})
    memory_sharing: str = field(
        default="per_head",
        metadata={"help": "One memory for each query head (per_head), key/value head (per_kv_head), or for all (shared)."},
    )
    features: int | None = field(
        default=None,
        metadata={"help": "Features of a learned feature map phi(x) = act(W x + b); None: phi = act, no W."},
    )
    feature_bias: bool = field(default=False, metadata={"help": "Whether a learned feature map has a bias b."})
    normalizer: bool = field(default=False, metadata={"help": "Whether the term is divided by phi(q) . N."})
    target_modules: list[str] | str | None = field(
        default=None,
        metadata={
            "help": "The attention modules: the ends of their names, or a regular expression for whole names. None: "
            "those of the model's decoder, for every known family."
        },
    )
    layers_to_transform: list[int] | int | None = field(
        default=None, metadata={"help": "The layers that get a memory; None: all."}
    )
    modules_to_save: list[str] | None = field(
        default=None,
        metadata={
            "help": "Modules of the base to train and save besides. An adapter file cannot carry them: `ptplus convert` "
            "refuses such a checkpoint where they differ from the base."
        },
    )
    num_layers: int | None = field(default=None, metadata={"help": "Of the base; filled in."})
    num_attention_heads: int | None = field(default=None, metadata={"help": "Of the base; filled in."})
    num_key_value_heads: int | None = field(default=None, metadata={"help": "Of the base; filled in."})
    head_dim: int | None = field(default=None, metadata={"help": "Of the base; filled in."})
    base_model_type: str | None = field(default=None, metadata={"help": "Of the base; filled in."})
    num_features: int | None = field(default=None, metadata={"help": "F, learned or not; filled in."})


class PrefixTuningPlusConfig(_Fields):
    """Configuration of a Prefix-Tuning+ adapter.

    Memories start at 0 and are F32 whatever the base's type: an untrained adapter changes nothing. The sizes (`num_layers` to
    `num_features`) are filled in from the model, and held against it where they are stated.

    Keys of a file that are none of its fields are kept and saved again, as `ptplus` does. Raises `ValueError` for values
    that mean nothing.
    """

    def __init__(self, **kwargs: Any) -> None:
        names = set(_Fields.__dataclass_fields__)
        super().__init__(**{k: v for k, v in kwargs.items() if k in names})
        # A misspelt option must not be carried along as data: files have their type and sizes with them.
        self.other_keys = {k: v for k, v in kwargs.items() if k not in names}
        if self.other_keys and "peft_type" not in kwargs:
            raise TypeError(f"PrefixTuningPlusConfig has no {', '.join(sorted(self.other_keys))}")

    def __post_init__(self) -> None:
        super().__post_init__()
        self.peft_type = peft_type()
        self.conventions()
        layers = self.layers_to_transform
        if layers is not None:
            listed = [layers] if isinstance(layers, int) else list(layers)
            if not listed or any(isinstance(i, bool) or not isinstance(i, int) or i < 0 for i in listed):
                raise ValueError(f"layers_to_transform: expected numbers of layers, found {layers!r}")
            self.layers_to_transform = sorted(set(listed))
        if isinstance(self.target_modules, (set, tuple)):
            self.target_modules = sorted(self.target_modules)
        if self.feature_bias and self.features is None:
            raise ValueError("feature_bias belongs to a learned feature map: state features, too")

    def conventions(self) -> Conventions:
        """What the memories mean."""
        return Conventions.of(vars(self))

    def sizes(self) -> Sizes:
        """Of the base, once they are filled in."""
        return Sizes(**{key: getattr(self, key) for key in Sizes._fields})

    def prepare_for_training(self) -> None:
        """Drops what would not be true of weights that are trained further."""
        for key in _OF_STORED_WEIGHTS:
            self.other_keys.pop(key, None)

    def to_dict(self) -> dict[str, Any]:
        """Every field and every other key of the file that it was read from."""
        return {**self.other_keys, **super().to_dict()}
