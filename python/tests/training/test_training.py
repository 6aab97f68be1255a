"""Trained through transformers' Trainer and TRL's SFTTrainer on SmolLM2's architecture, resumed, exported, and back."""

import math
import subprocess

import pytest
import torch
from datasets import Dataset
from peft import PeftModel, get_peft_model
from safetensors.torch import load_file
from tiny import ROOT, build, config, load_base, logits, memories, save_base, tokens
from transformers import AutoTokenizer, Trainer, TrainingArguments
from trl import SFTConfig, SFTTrainer

import ptplus
import ptplus.peft

IDS = tokens()
# SmolLM2-135M's architecture, smaller: fewer key/value heads, tied embeddings, silu, RMS norm.
SMOLLM2 = {
    "hidden_size": 192,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "num_hidden_layers": 4,
    "rope_theta": 100000.0,
    "tie_word_embeddings": True,
}
STEPS = 12


def arguments(folder, cls=TrainingArguments, **options):
    return cls(
        str(folder),
        per_device_train_batch_size=2,
        max_steps=STEPS,
        save_steps=STEPS // 2,
        logging_steps=1,
        learning_rate=2e-2,
        lr_scheduler_type="constant",
        report_to=[],
        use_cpu=True,
        seed=1,
        **options,
    )


def rows() -> Dataset:
    """Few enough to be learned by heart in a dozen steps."""
    return Dataset.from_list([{"input_ids": row, "labels": row} for row in tokens(2, 10, seed=2).tolist() * 16])


def losses(trainer) -> list[float]:
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


def exported_and_back(model, base_folder, tmp_path) -> None:
    adapted = logits(model, IDS)
    model.save_pretrained(tmp_path / "out")
    ptplus.save_probe(model, IDS, tmp_path / "out/probe.safetensors")
    probe = tmp_path / "out/probe.safetensors"
    document = ptplus.run("convert", tmp_path / "out", output=tmp_path / "a.gguf", base=base_folder, probe=probe)
    assert document["verification"]["metrics"]["max_abs"] < 2e-4
    assert document["verification"]["effect"] > 0.05, "it learned something"
    if "llama-cpp" in features():
        found = ptplus.run("verify", tmp_path / "a.gguf", base=base_folder, probe=probe, engine="llama.cpp")
        assert found["metrics"]["max_abs"] < 2e-4
    ptplus.run("convert", tmp_path / "a.gguf", output=tmp_path / "back", to="safetensors")
    back = PeftModel.from_pretrained(load_base(base_folder), tmp_path / "back")
    assert (logits(back, IDS) - adapted).abs().max().item() == 0


def features() -> str:
    return subprocess.run([ptplus.find_program(), "--version"], capture_output=True, text=True, check=True).stdout


@pytest.mark.parametrize(
    ("options", "training"),
    [
        ({}, {}),
        ({"features": 40, "feature_bias": True, "memory_sharing": "per_kv_head"}, {}),
        ({}, {"bf16": True}),
        ({}, {"gradient_checkpointing": True, "gradient_accumulation_steps": 2}),
    ],
    ids=["plain", "learned features", "bf16", "checkpointing"],
)
def test_trainer(options, training, tmp_path):
    base = build(**SMOLLM2)
    folder = save_base(base, tmp_path / "base")
    plain = logits(base, IDS)
    model = get_peft_model(base, config(**options))
    names = {n for n, p in model.named_parameters() if p.requires_grad}
    assert names == {n for n, _ in model.named_parameters() if "prefix_" in n}
    assert len(names) == 4 * (3 if options else 1)
    trainer = Trainer(model, arguments(tmp_path / "run", **training), train_dataset=rows())
    trainer.train()
    found = losses(trainer)
    assert len(found) == STEPS
    assert all(math.isfinite(x) for x in found)
    assert sum(found[-3:]) < 0.9 * sum(found[:3])
    assert {p.dtype for p in memories(model).values()} == {torch.float32}
    trained = memories(model)

    # From the middle to the end once more: the same memories, bit for bit.
    torch.manual_seed(99)
    again = get_peft_model(load_base(folder), config(**options))
    resumed = Trainer(again, arguments(tmp_path / "run", **training), train_dataset=rows())
    resumed.train(resume_from_checkpoint=str(tmp_path / f"run/checkpoint-{STEPS // 2}"))
    assert memories(again).keys() == trained.keys()
    assert all(torch.equal(p, trained[n]) for n, p in memories(again).items())
    at_end = load_file(tmp_path / f"run/checkpoint-{STEPS}/adapter_model.safetensors")
    assert all(torch.equal(at_end[n.replace(".default", "")], p.cpu()) for n, p in trained.items())

    with model.disable_adapter():
        assert torch.equal(logits(model, IDS), plain) or training.get("bf16"), "the base is as it was"
    if training.get("bf16"):
        # The trainer leaves its rounding on the model; what it trained is used as its users do.
        model = PeftModel.from_pretrained(load_base(folder), tmp_path / f"run/checkpoint-{STEPS}")
    exported_and_back(model, folder, tmp_path)


def test_sft_trainer(tmp_path):
    tokenizer = AutoTokenizer.from_pretrained(ROOT / "fixtures/tokenizers/smollm")
    tokenizer.pad_token = tokenizer.eos_token
    base = build(vocab_size=len(tokenizer), **SMOLLM2)
    folder = save_base(base, tmp_path / "base")
    texts = Dataset.from_list([{"text": t} for t in ("Ahoy, matey! Arrr.", "By me beard!", "Arrr, it be Rome!") * 8])
    trainer = SFTTrainer(
        base,
        args=arguments(tmp_path / "run", SFTConfig, dataset_num_proc=None, max_length=24, gradient_checkpointing=False),
        train_dataset=texts,
        processing_class=tokenizer,
        peft_config=config(),
    )
    names = {n for n, p in trainer.model.named_parameters() if p.requires_grad}
    assert names == {f"base_model.model.model.layers.{i}.self_attn.prefix_memory.default" for i in range(4)}
    trainer.train()
    found = losses(trainer)
    assert sum(found[-3:]) < 0.9 * sum(found[:3])
    checkpoint = tmp_path / f"run/checkpoint-{STEPS}"
    model = PeftModel.from_pretrained(load_base(folder), checkpoint)
    assert all(torch.equal(p, q) for p, q in zip(memories(trainer.model).values(), parameters(model), strict=True))
    exported_and_back(model, folder, tmp_path)


def parameters(model) -> list[torch.Tensor]:
    return [p for n, p in model.named_parameters() if "prefix_memory" in n]


def test_an_attached_adapter_is_trained_by_trainer(tmp_path):
    """Kept outside of the model, trainers trained nothing, and said nothing."""
    base = build(**SMOLLM2).requires_grad_(False)
    adapter = ptplus.attach(base, ptplus.new_adapter(base))
    trainer = Trainer(base, arguments(tmp_path / "run"), train_dataset=rows())
    trainer.train()
    found = losses(trainer)
    assert sum(found[-3:]) < 0.9 * sum(found[:3])
    assert all(adapter.parts(i)["memory"].abs().max() > 0 for i in range(4))
    saved = load_file(tmp_path / f"run/checkpoint-{STEPS}/model.safetensors")
    assert torch.equal(saved["ptplus_adapter.layers.3.memory"], adapter.parts(3)["memory"])
