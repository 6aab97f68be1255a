"""`save_probe`: any model, in F32, and what it refuses."""

import warnings

import pytest
import torch
import transformers
from peft import LoraConfig, PeftModel, PromptTuningConfig, get_peft_model, inject_adapter_in_model
from safetensors.torch import load_file
from tiny import DTYPE, build, config, fill, logits, save_base, tokens

import ptplus
import ptplus.peft

IDS = tokens()


@pytest.fixture
def path(tmp_path):
    return tmp_path / "probe.safetensors"


def adapted(base=None, **options):
    model = get_peft_model(build() if base is None else base, config(**options))
    fill(model)
    return model


def state(model):
    """Everything that a probe must leave as it was."""
    return (
        {n: (p.dtype, p.requires_grad, p.data_ptr(), p.detach().clone()) for n, p in model.named_parameters()},
        {n: b.clone() for n, b in model.named_buffers()},
        [m.training for m in model.modules()],
        [len(m._forward_hooks) for m in model.modules()],
    )


def same_state(a, b):
    parameters = all(x[:2] == y[:2] and torch.equal(x[3], y[3]) for x, y in zip(a[0].values(), b[0].values(), strict=True))
    buffers = all(x.dtype == y.dtype and torch.equal(x, y) for x, y in zip(a[1].values(), b[1].values(), strict=True))
    return parameters and buffers and a[2:] == b[2:]


def test_a_peft_model_in_training(path):
    model = adapted()
    expected, plain = logits(model, IDS), logits(build(), IDS)
    model.train()
    for layer in model.get_base_model().model.layers:
        layer.self_attn.base_layer.attention_dropout = 0.5
    before = state(model)
    ptplus.save_probe(model, IDS, path)
    assert same_state(before, state(model))
    probe = load_file(path)
    assert torch.equal(probe["logits"], expected)
    assert torch.equal(probe["base_logits"], plain)
    assert probe["q.0"].shape == probe["term.2"].shape == (2, 4, 12, 32)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("cast", ["load", "to"])
def test_16_bits_are_widened_and_said(dtype, cast, path, tmp_path):
    """Loaded in 16 bits, rotary frequencies stay F32; `.to` rounds them, too, and they are computed anew."""
    folder = save_base(build().to(dtype), tmp_path / "base")
    base = transformers.AutoModelForCausalLM.from_pretrained(folder, **{DTYPE: dtype})
    base = base.to(dtype) if cast == "to" else base
    assert (base.model.rotary_emb.inv_freq.dtype == dtype) == (cast == "to")
    model = adapted(base)
    model.save_pretrained(tmp_path / "out")
    before = state(model)
    with pytest.warns(UserWarning, match="widened to float32") as said:
        ptplus.save_probe(model, IDS, path)
    assert said[0].filename == __file__
    assert same_state(before, state(model))
    document = ptplus.run("convert", tmp_path / "out", output=tmp_path / "a.gguf", base=folder, probe=path)
    assert document["verification"]["metrics"]["max_abs"] < 2e-4
    assert document["verification"]["base_metrics"]["max_abs"] < 2e-4


def test_accelerate_leaves_autocast_behind(path, tmp_path):
    """After training with mixed precision, `forward` still rounds: the probe goes round it."""
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState

    AcceleratorState._reset_state(reset_partial_state=True)
    base = build()
    expected_base = logits(base, IDS)
    model = adapted(base)
    expected = logits(model, IDS)
    prepared = Accelerator(mixed_precision="bf16", cpu=True).prepare(model)
    assert not torch.equal(logits(prepared, IDS), expected)
    ptplus.save_probe(prepared, IDS, path)
    probe = load_file(path)
    assert torch.equal(probe["logits"], expected)
    assert torch.equal(probe["base_logits"], expected_base)
    assert not torch.equal(logits(prepared, IDS), expected), "and leaves the model as it was"
    AcceleratorState._reset_state(reset_partial_state=True)


def test_a_loaded_model_stays_frozen(path, tmp_path):
    adapted().save_pretrained(tmp_path)
    model = PeftModel.from_pretrained(build(), tmp_path)
    before = state(model)
    ptplus.save_probe(model, IDS, path)
    assert same_state(before, state(model))
    assert not any(p.requires_grad for p in model.parameters())


def test_wrappers_are_looked_through(path):
    model = adapted()
    expected = logits(model, IDS)
    compiled = torch.compile(model, backend="eager")
    ptplus.save_probe(compiled, IDS, path)
    assert torch.equal(load_file(path)["logits"], expected)
    in_place = adapted()
    in_place.compile(backend="eager")
    ptplus.save_probe(torch.nn.DataParallel(in_place), IDS, path)
    assert torch.equal(load_file(path)["logits"], expected)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        ptplus.save_probe(model, IDS, path)
    assert torch.equal(load_file(path)["logits"], expected)


def test_other_methods_of_peft(path):
    lora = get_peft_model(build(), LoraConfig(target_modules=["q_proj"], init_lora_weights=False))
    ptplus.save_probe(lora, IDS, path)
    probe = load_file(path)
    assert torch.equal(probe["base_logits"], logits(build(), IDS))
    assert torch.equal(probe["logits"], logits(lora, IDS))
    assert set(probe) == {"input_ids", "logits", "base_logits"}
    # Virtual tokens stand before the real ones, which alone are recorded.
    prompt = get_peft_model(build(), PromptTuningConfig(num_virtual_tokens=5, task_type="CAUSAL_LM"))
    ptplus.save_probe(prompt, IDS, path)
    probe = load_file(path)
    assert probe["logits"].shape == (2, 12, 160)
    assert torch.equal(probe["logits"], logits(prompt, IDS)[:, 5:])


@pytest.mark.parametrize("options", [LoraConfig(target_modules=["q_proj"], init_lora_weights=False), config()])
def test_layers_without_pefts_wrapper(options, path):
    """What transformers' own `add_adapter` does."""
    model = inject_adapter_in_model(options, build())
    fill(model)
    expected = logits(model, IDS)
    model.requires_grad_(False)
    before = state(model)
    ptplus.save_probe(model, IDS, path)
    assert same_state(before, state(model))
    probe = load_file(path)
    assert torch.equal(probe["base_logits"], logits(build(), IDS))
    assert torch.equal(probe["logits"], expected)
    assert ("term.1" in probe) == (options.peft_type == "PREFIX_TUNING_PLUS")


@pytest.mark.parametrize(
    "wrap", [lambda x: x, lambda x: (x, None), lambda x: {"logits": x}, lambda x: type("O", (), {"logits": x})]
)
def test_any_callable(wrap, path):
    model, base = adapted(), build()
    ptplus.save_probe(
        lambda ids: wrap(logits(model, ids)), IDS.tolist(), path, base=lambda ids: wrap(logits(base, ids)), taps=False
    )
    probe = load_file(path)
    assert torch.equal(probe["logits"], logits(model, IDS))
    assert torch.equal(probe["base_logits"], logits(base, IDS))
    assert set(probe) == {"input_ids", "logits", "base_logits"}
    with pytest.warns(UserWarning, match="no base_logits"):
        ptplus.save_probe(lambda ids: logits(model, ids), IDS, path)
    assert set(load_file(path)) >= {"input_ids", "logits"}
    assert "base_logits" not in load_file(path)


def test_positions_and_single_rows(path):
    model = adapted()
    ptplus.save_probe(model, IDS[0], path, positions=[11, 3, 3])
    probe = load_file(path)
    assert probe["positions"].tolist() == [3, 11]
    assert torch.equal(probe["logits"], logits(model, IDS[:1])[:, [3, 11]])
    ptplus.save_probe(model, {"input_ids": IDS.tolist(), "attention_mask": [[1] * 12] * 2}, path)
    assert "positions" not in load_file(path)


def test_what_would_prove_nothing_is_refused(path):
    model = adapted()
    mask = torch.ones_like(IDS)
    mask[1, 0] = 0
    for ids, options, told in [
        ({"input_ids": IDS, "attention_mask": mask}, {}, "padded"),
        ([[]], {}, "input_ids"),
        (IDS.float(), {}, "expected integers"),
        (IDS[None], {}, r"expected \[B, T\]"),
        (IDS + 200, {}, "input_ids: expected 0"),
        (-IDS, {}, "input_ids"),
        (IDS, {"positions": []}, "positions"),
        (IDS, {"positions": [12]}, "positions"),
        (IDS, {"positions": [-1]}, "positions"),
    ]:
        with pytest.raises(ValueError, match=told):
            ptplus.save_probe(model, ids, path, **options)
    with pytest.raises(ValueError, match="changes nothing"):
        ptplus.save_probe(get_peft_model(build(), config()), IDS, path)
    with pytest.raises(ValueError, match="changes nothing"):
        ptplus.save_probe(build(), IDS, path, base=build())
    with pytest.raises(ValueError, match="expected logits"):
        ptplus.save_probe(lambda ids: torch.zeros(2, 160), IDS, path, base=build())
    with pytest.raises(ValueError, match="expected logits at 12 positions, found 1"):
        ptplus.save_probe(lambda ids: torch.zeros(2, 1, 160), IDS, path, base=build())
    with pytest.raises(TypeError, match="callable"):
        ptplus.save_probe("a path", IDS, path)
    with torch.no_grad():
        next(p for p in model.parameters() if p.requires_grad)[0, 0, 0] = float("nan")
    with pytest.raises(ValueError, match="NaN"):
        ptplus.save_probe(model, IDS, path)
    assert not path.exists()


def test_what_is_rounded_all_the_same_is_refused(path):
    class Autocast(torch.nn.Module):
        def __init__(self, inner):
            super().__init__()
            self.inner = inner

        def forward(self, ids):
            with torch.autocast("cpu", dtype=torch.bfloat16):
                return self.inner(input_ids=ids).logits.float()

    with pytest.raises(ValueError, match="computes in 16 bits"):
        ptplus.save_probe(Autocast(adapted()), IDS, path, base=Autocast(build()))
    with pytest.raises(ValueError, match="logits in torch"):
        ptplus.save_probe(lambda ids: logits(adapted(), ids).bfloat16(), IDS, path, base=build())
    rounded = build()
    rounded.register_buffer("scale", torch.tensor(8.0).bfloat16())
    with pytest.raises(ValueError, match="scale was rounded"):
        ptplus.save_probe(adapted(rounded), IDS, path)
    meta = adapted()
    meta.get_base_model().lm_head.weight = torch.nn.Parameter(torch.empty(160, 128, device="meta"))
    with pytest.raises(ValueError, match="not in memory"):
        ptplus.save_probe(meta, IDS, path)
    assert not path.exists()


def test_attach_and_detach(path, tmp_path):
    base = build()
    plain = logits(base, IDS)
    base.requires_grad_(False)
    adapter = ptplus.attach(base, ptplus.new_adapter(base, features=16, bias=True, query_tap="pre_rope", layers=[2, 0]))
    assert torch.equal(logits(base, IDS), plain)
    # An ordinary submodule: whoever takes the model's parameters trains it, whoever saves its state saves it.
    assert {n for n, p in base.named_parameters() if p.requires_grad} == {
        f"ptplus_adapter.layers.{i}.{r}" for i in (0, 2) for r in ("memory", "feature.weight", "feature.bias")
    }
    fill(base)
    expected = logits(base, IDS)
    ptplus.save_probe(base, IDS, path)
    assert torch.equal(load_file(path)["base_logits"], plain)
    ptplus.save_adapter(adapter, tmp_path / "out")
    folder = save_base(build(), tmp_path / "base")
    document = ptplus.run("convert", tmp_path / "out", output=tmp_path / "a.gguf", base=folder, probe=path)
    assert document["verification"]["pass"]
    ptplus.detach(base)
    assert torch.equal(logits(base, IDS), plain)
    assert not hasattr(base, "ptplus_adapter")
    ptplus.run("convert", tmp_path / "a.gguf", output=tmp_path / "back", to="safetensors")
    for folder in ("out", "back"):
        ptplus.attach(base, ptplus.load_adapter(tmp_path / folder))
        assert torch.equal(logits(base, IDS), expected)
    with pytest.raises(ValueError, match="num_layers: expected 2"):
        ptplus.attach(build("qwen2"), ptplus.load_adapter(tmp_path / "out"))
    with pytest.raises(ValueError, match="model type 'gpt2'"):
        ptplus.attach(
            transformers.GPT2LMHeadModel(transformers.GPT2Config(n_embd=8, n_head=2, n_layer=3, vocab_size=9)),
            ptplus.Adapter({k: v for k, v in adapter.config.items() if k not in SIZES}, adapter.tensors()),
        )


SIZES = ("num_layers", "num_attention_heads", "num_key_value_heads", "head_dim", "base_model_type")


def test_no_warning_where_nothing_is_to_be_said(path):
    with warnings.catch_warnings():
        model = adapted()
        warnings.simplefilter("error")
        ptplus.save_probe(model, IDS, path)
