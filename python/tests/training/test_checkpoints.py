"""Checkpoints as training codes leave them, each to a verified GGUF: `ptplus convert --probe`, then `ptplus verify`."""

import json
from collections import OrderedDict
from pathlib import Path

import numpy
import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from peft import get_peft_model, get_peft_model_state_dict
from safetensors.torch import save_file
from tiny import build, config, fill, save_base, tokens
from transformers import Trainer, TrainingArguments

import ptplus
import ptplus.peft

IDS = tokens()
ROWS = [{"input_ids": row.tolist(), "labels": row.tolist()} for row in IDS]


def optimizer_of(model) -> torch.optim.Optimizer:
    """One that has taken a step, so that it has state."""
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-3)
    model(input_ids=IDS, labels=IDS, use_cache=False).loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    return optimizer


def peft_model():
    model = get_peft_model(build(), config())
    fill(model)
    return model


def attached():
    model = build().requires_grad_(False)
    ptplus.attach(model, ptplus.new_adapter(model))
    fill(model)
    return model


def trainer_with_peft(folder: Path):
    model = peft_model()
    train(model, folder)
    return model, folder / "checkpoint-2"


def trainer_with_memories_in_the_model(folder: Path):
    model = attached()
    train(model, folder)
    return model, folder / "checkpoint-2"


def train(model, folder: Path) -> None:
    arguments = TrainingArguments(str(folder), max_steps=2, save_steps=2, learning_rate=1e-2, report_to=[], use_cpu=True)
    Trainer(model, arguments, train_dataset=ROWS).train()


def save_pretrained_of_the_whole_model(folder: Path):
    model = attached()
    model.save_pretrained(folder)
    return model, folder


def save_pretrained_in_shards(folder: Path):
    model = attached()
    model.save_pretrained(folder, max_shard_size="200KB")
    assert (folder / "model.safetensors.index.json").exists()
    return model, folder


def lightning(folder: Path):
    """A LightningModule that has the model as `self.model`."""
    model = peft_model()
    optimizer = optimizer_of(model)
    path = folder / "epoch=0-step=10.ckpt"
    torch.save(
        {
            "epoch": 0,
            "global_step": 10,
            "pytorch-lightning_version": "2.5.0",
            "state_dict": OrderedDict((f"model.{k}", v) for k, v in model.state_dict().items()),
            "loops": {"fit_loop": {"state_dict": {}, "epoch_progress": {"total": {"ready": 1}, "current": {"ready": 1}}}},
            "callbacks": {"ModelCheckpoint{'monitor': None}": {"best_model_score": torch.tensor(1.5), "best_k_models": {}}},
            "optimizer_states": [optimizer.state_dict()],
            "lr_schedulers": [],
            "hparams_name": "kwargs",
            "hyper_parameters": {"lr": 1e-3, "name": "mine"},
        },
        path,
    )
    return model, folder


def lightning_with_an_attached_adapter(folder: Path):
    model = attached()
    path = folder / "last.ckpt"
    trained = {f"model.{k}": v for k, v in model.state_dict().items() if "ptplus_adapter" in k}
    torch.save({"epoch": 3, "global_step": 7, "pytorch-lightning_version": "2.5.0", "state_dict": trained}, path)
    return model, path


def accelerate_state(folder: Path):
    AcceleratorState._reset_state(reset_partial_state=True)
    accelerator = Accelerator(cpu=True)
    model = peft_model()
    prepared, _ = accelerator.prepare(model, optimizer_of(model))
    accelerator.save_state(str(folder))
    AcceleratorState._reset_state(reset_partial_state=True)
    return prepared, folder


def accelerate_without_safetensors(folder: Path):
    AcceleratorState._reset_state(reset_partial_state=True)
    accelerator = Accelerator(cpu=True)
    model = accelerator.prepare(attached())
    accelerator.save_state(str(folder), safe_serialization=False)
    AcceleratorState._reset_state(reset_partial_state=True)
    return model, folder / "pytorch_model.bin"


def deepspeed_zero_1(folder: Path):
    """Rank 0's weights whole, the optimizer's in pieces beside them."""
    model = peft_model()
    trained = OrderedDict((n, p.detach()) for n, p in model.named_parameters() if p.requires_grad)
    step = folder / "global_step10"
    step.mkdir(parents=True)
    torch.save(
        {
            "module": OrderedDict(model.state_dict()),
            "buffer_names": [n for n, _ in model.named_buffers()],
            "optimizer": None,
            "param_shapes": [OrderedDict((n, p.shape) for n, p in trained.items())],
            "frozen_param_shapes": None,
            "shared_params": {},
            "frozen_param_fragments": None,
            "lr_scheduler": None,
            "data_sampler": None,
            "random_ltd": None,
            "sparse_tensor_module_names": set(),
            "skipped_steps": 0,
            "global_steps": 10,
            "global_samples": 20,
            "dp_world_size": 1,
            "mp_world_size": 1,
            "ds_config": {"zero_optimization": {"stage": 1}, "train_batch_size": 2},
            "ds_version": "0.17.0",
        },
        step / "mp_rank_00_model_states.pt",
    )
    flat = torch.cat([p.flatten() for p in trained.values()])
    torch.save(
        {
            "optimizer_state_dict": {
                "loss_scaler": None,
                "zero_stage": 1,
                "partition_count": [1],
                "base_optimizer_state": {
                    "state": {0: {"step": 10, "exp_avg": flat * 0, "exp_avg_sq": flat * 0}},
                    "param_groups": [],
                },
                "single_partition_of_fp32_groups": [flat],
            },
            "ds_config": {},
            "ds_version": "0.17.0",
        },
        step / "zero_pp_rank_0_mp_rank_00_optim_states.pt",
    )
    (folder / "latest").write_text("global_step10")
    (folder / "zero_to_fp32.py").write_text("# DeepSpeed's script\n")
    return model, step / "mp_rank_00_model_states.pt"


def torchtune(folder: Path):
    """Its own names for layers and attention; the adapter's weights and PEFT's configuration in a folder of the epoch."""
    model = peft_model()
    epoch = folder / "epoch_0"
    epoch.mkdir(parents=True)
    names = {k: k.split("model.model.")[-1].replace("self_attn", "attn").replace(".default", "") for k in model.state_dict()}
    torch.save({names[k]: v for k, v in model.state_dict().items() if "prefix_" in k}, epoch / "adapter_model.pt")
    document = {"r": 8, "base_model_name_or_path": "meta-llama/Llama-3.2-1B"}
    (epoch / "adapter_config.json").write_text(json.dumps(document))
    state = {
        "optimizer": optimizer_of(model).state_dict(),
        "seed": 1,
        "epochs_run": 1,
        "total_epochs": 1,
        "max_steps_per_epoch": None,
    }
    (folder / "recipe_state").mkdir()
    torch.save(state, folder / "recipe_state/recipe_state.pt")
    return restored(model, epoch / "adapter_model.pt"), epoch


def restored(model, path):
    """The model with the weights that the file has: the optimizer took a step after it was written."""
    saved = list(torch.load(path).values())
    with torch.no_grad():
        for p, v in zip((p for p in model.parameters() if p.requires_grad), saved, strict=True):
            p.copy_(v)
    return model


def plain_loop(folder: Path):
    model = attached()
    path = folder / "adapter.pt"
    torch.save(model.ptplus_adapter.state_dict(), path)
    return model, path


def plain_loop_with_everything(folder: Path):
    model = peft_model()
    optimizer = optimizer_of(model)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 10)
    path = folder / "checkpoint.pth"
    torch.save(
        {
            "epoch": 4,
            "loss": numpy.float64(1.25),
            "model_state_dict": model.state_dict(),
            "optimizer_state_dict": optimizer.state_dict(),
            "scheduler_state_dict": scheduler.state_dict(),
            "rng_state": torch.get_rng_state(),
            "args": {"lr": 1e-3, "betas": (0.9, 0.95)},
        },
        path,
    )
    return model, path


def ddp_and_compile(folder: Path):
    model = attached()
    path = folder / "pytorch_model.bin"
    torch.save({f"module._orig_mod.{k}": v for k, v in model.state_dict().items()}, path)
    return model, path


def peft_state_dict(folder: Path):
    model = peft_model()
    path = folder / "adapter_model.bin"
    torch.save(get_peft_model_state_dict(model), path)
    return model, path


def fsdp_full_state_dict(folder: Path):
    model = peft_model()
    state = {
        f"_fsdp_wrapped_module.{k}".replace("self_attn", "_fsdp_wrapped_module.self_attn"): v
        for k, v in model.state_dict().items()
    }
    path = folder / "model.safetensors"
    save_file({k: v.clone().contiguous() for k, v in state.items()}, path)
    return model, path


CODES = [
    trainer_with_peft,
    trainer_with_memories_in_the_model,
    save_pretrained_of_the_whole_model,
    save_pretrained_in_shards,
    lightning,
    lightning_with_an_attached_adapter,
    accelerate_state,
    accelerate_without_safetensors,
    deepspeed_zero_1,
    torchtune,
    plain_loop,
    plain_loop_with_everything,
    ddp_and_compile,
    peft_state_dict,
    fsdp_full_state_dict,
]


@pytest.mark.parametrize("code", CODES, ids=lambda f: f.__name__)
def test_a_checkpoint(code, tmp_path):
    base = save_base(build(), tmp_path / "base")
    (tmp_path / "run").mkdir()
    model, checkpoint = code(tmp_path / "run")
    ptplus.save_probe(model, IDS, tmp_path / "probe.safetensors")
    document = ptplus.run("convert", checkpoint, output=tmp_path / "a.gguf", base=base, probe=tmp_path / "probe.safetensors")
    assert document["verification"]["pass"]
    verified = ptplus.run("verify", tmp_path / "a.gguf", base=base, probe=tmp_path / "probe.safetensors")
    assert verified["metrics"]["max_abs"] < 2e-4
    assert verified["effect"] > 0.1
