"""Tiny models with random weights, one of every family, and what tests do with them."""

import json
import os
from pathlib import Path

import torch
import transformers

import ptplus.peft

torch.set_num_threads(1)
os.environ.setdefault("HF_HUB_OFFLINE", "1")

ROOT = Path(__file__).resolve().parents[3]
MODELS = ROOT / "fixtures/models"
COMMON = {
    "vocab_size": 160,
    "max_position_embeddings": 256,
    "initializer_range": 0.12,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
    "intermediate_size": 96,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}
HEAD_32 = {"hidden_size": 64, "head_dim": 32}
HEAD_OF_HIDDEN = {"hidden_size": 128}
MOE = {"moe_intermediate_size": 48, "num_experts": 4, "num_experts_per_tok": 2}
LAYERS = ["sliding_attention", "full_attention", "sliding_attention"]
# model_type: (stem of the classes' names, configuration)
FAMILIES = {
    "gemma2": (
        "Gemma2",
        {**HEAD_32, "num_hidden_layers": 3, "sliding_window": 8, "query_pre_attn_scalar": 24, "attn_logit_softcapping": 20.0},
    ),
    "gemma3_text": (
        "Gemma3",
        {**HEAD_32, "num_hidden_layers": 3, "sliding_window": 8, "query_pre_attn_scalar": 24, "layer_types": LAYERS},
    ),
    "granite": ("Granite", {**HEAD_OF_HIDDEN, "num_hidden_layers": 2, "embedding_multiplier": 6.0, "logits_scaling": 4.0}),
    # SmolLM2's architecture: a llama with tied embeddings and fewer key/value heads than heads.
    "llama": ("Llama", {**HEAD_OF_HIDDEN, "num_hidden_layers": 3, "tie_word_embeddings": True}),
    "mistral": ("Mistral", {**HEAD_32, "num_hidden_layers": 2, "sliding_window": 8}),
    "mixtral": ("Mixtral", {**HEAD_32, "num_hidden_layers": 2, "num_local_experts": 4, "num_experts_per_tok": 2}),
    "olmo2": ("Olmo2", {**HEAD_OF_HIDDEN, "num_hidden_layers": 2}),
    "phi3": ("Phi3", {**HEAD_OF_HIDDEN, "num_hidden_layers": 2, "sliding_window": None}),
    "qwen2": ("Qwen2", {**HEAD_OF_HIDDEN, "num_hidden_layers": 2}),
    "qwen2_moe": ("Qwen2Moe", {**HEAD_OF_HIDDEN, "num_hidden_layers": 2, "shared_expert_intermediate_size": 64, **MOE}),
    "qwen3": ("Qwen3", {**HEAD_32, "num_hidden_layers": 2}),
    "qwen3_moe": ("Qwen3Moe", {**HEAD_32, "num_hidden_layers": 2, "norm_topk_prob": True, **MOE}),
    "smollm3": ("SmolLM3", {**HEAD_OF_HIDDEN, "num_hidden_layers": 4, "no_rope_layer_interval": 4}),
}


def family_exists(model_type: str) -> bool:
    """Whether this version of transformers has it."""
    return hasattr(transformers, FAMILIES[model_type][0] + "ForCausalLM")


def build(model_type: str = "llama", seed: int = 0, **conf):
    """A model in evaluation mode, F32, in which every tensor matters."""
    stem, own = FAMILIES[model_type]
    torch.manual_seed(seed)
    config_cls = getattr(transformers, {"Gemma3": "Gemma3TextConfig"}.get(stem, stem + "Config"))
    model = getattr(transformers, stem + "ForCausalLM")(config_cls(**{**COMMON, **own, **conf})).eval().float()
    with torch.no_grad():  # initialisation leaves norms at 1 and biases at 0
        for p in model.parameters():
            if p.ndim == 1:
                p.add_(torch.randn_like(p) * 0.1)
    return model


def save_base(model, folder: Path) -> Path:
    """The base as its users have it: a folder that `--base` takes."""
    model.save_pretrained(folder)
    return folder


IS_TRANSFORMERS_4 = transformers.__version__.startswith("4.")
DTYPE = "torch_dtype" if IS_TRANSFORMERS_4 else "dtype"


def load_base(folder: Path, **options):
    """F32, from a folder that any version of transformers wrote."""
    document = json.loads((folder / "config.json").read_text())
    rope = document.pop("rope_parameters", None)
    if IS_TRANSFORMERS_4 and rope is not None:  # it would take its default for a key of version 5
        document["rope_theta"] = rope.pop("rope_theta")
        document["rope_scaling"] = rope if rope.get("rope_type", "default") != "default" else None
        options["config"] = transformers.AutoConfig.for_model(**document)
    return transformers.AutoModelForCausalLM.from_pretrained(folder, **{DTYPE: torch.float32, **options}).eval()


def tokens(batch: int = 2, length: int = 12, seed: int = 5) -> torch.Tensor:
    return torch.randint(3, 160, (batch, length), generator=torch.Generator().manual_seed(seed))


def logits(model, ids) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=ids, use_cache=False).logits


def fill(model, seed: int = 3, std: float = 0.1) -> None:
    """Gives every trainable parameter a value that matters, as training would."""
    g = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, p in model.named_parameters():
            if p.requires_grad:
                value = torch.randn(p.shape, generator=g) * std
                p.copy_(value.abs() + 0.1 if "normalizer" in name else value)


def config(**options) -> "ptplus.peft.PrefixTuningPlusConfig":
    return ptplus.peft.PrefixTuningPlusConfig(task_type="CAUSAL_LM", **options)


def memories(model) -> dict[str, torch.Tensor]:
    return {n: p.detach().clone() for n, p in model.named_parameters() if p.requires_grad}
