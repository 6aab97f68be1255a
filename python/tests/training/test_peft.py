"""Prefix-Tuning+ as a PEFT method: options, several adapters, ways to train, files."""

import copy
import json
import os
import pickle
import subprocess
import sys
import warnings
from concurrent.futures import ThreadPoolExecutor

import peft
import pytest
import torch
from peft import AutoPeftModelForCausalLM, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from tiny import DTYPE, build, config, fill, load_base, logits, memories, save_base, tokens
from transformers import AutoModelForCausalLM, BitsAndBytesConfig

import ptplus
import ptplus.peft
from ptplus._method import FEATURE_MAPS
from ptplus.peft import PrefixTuningPlusConfig, PrefixTuningPlusLayer

IDS = tokens()
OPTIONS = [
    {},
    *({"feature_map": name} for name in FEATURE_MAPS if name != "elu"),
    {"query_tap": "pre_rope"},
    {"query_scale": 0.25, "memory_scale": 0.5},
    {"memory_sharing": "per_kv_head"},
    {"memory_sharing": "shared"},
    {"features": 48},
    {"features": 32, "feature_bias": True},  # as many as head_dim
    {"feature_map": "elu_plus_one", "normalizer": True},
    {
        "feature_map": "exp",
        "query_scale": 0.1,
        "features": 16,
        "feature_bias": True,
        "normalizer": True,
        "memory_sharing": "per_kv_head",
    },
    {"layers_to_transform": [2, 0]},
    {"layers_to_transform": 1},
]


def adapted(**options):
    model = get_peft_model(build(), config(**options))
    fill(model)
    return model


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_every_option_trains_saves_converts_and_comes_back(options, tmp_path):
    base = build()
    folder = save_base(base, tmp_path / "base")
    plain = logits(base, IDS)
    model = get_peft_model(base, config(**options))
    assert torch.equal(logits(model, IDS), plain)
    fill(model)
    loss = model(input_ids=IDS, labels=IDS).loss
    loss.backward()
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in model.parameters() if p.requires_grad)
    assert all(p.grad is None for p in model.parameters() if not p.requires_grad)
    expected = logits(model, IDS)
    model.save_pretrained(tmp_path / "out")
    ptplus.save_probe(model, IDS, tmp_path / "probe.safetensors")
    document = ptplus.run(
        "convert", tmp_path / "out", output=tmp_path / "a.gguf", base=folder, probe=tmp_path / "probe.safetensors"
    )
    assert document["verification"]["pass"]
    assert document["verification"]["metrics"]["max_abs"] < 2e-4
    assert document["conventions"] is None, "nothing was left to search for"
    ptplus.run("convert", tmp_path / "a.gguf", output=tmp_path / "back", to="safetensors")
    for written in ("out", "back"):
        again = PeftModel.from_pretrained(load_base(folder), tmp_path / written)
        assert torch.equal(logits(again, IDS), expected), written
        auto = json.loads((tmp_path / written / "adapter_config.json").read_text())
        auto["base_model_name_or_path"] = str(folder)
        (tmp_path / written / "adapter_config.json").write_text(json.dumps(auto))
        model = AutoPeftModelForCausalLM.from_pretrained(tmp_path / written, **{DTYPE: torch.float32})
        assert torch.equal(logits(model, IDS), expected), written


def test_the_configuration_refuses_what_means_nothing():
    for options, told in [
        ({"feature_map": "Elu"}, "feature_map: expected one of identity"),
        ({"query_tap": "before"}, "query_tap"),
        ({"memory_sharing": "heads"}, "memory_sharing"),
        ({"query_scale": float("nan")}, "query_scale: expected a finite number"),
        ({"memory_scale": "1"}, "memory_scale: expected a finite number"),
        ({"feature_bias": True}, "features"),
        ({"layers_to_transform": []}, "layers_to_transform"),
        ({"layers_to_transform": [-1]}, "layers_to_transform"),
    ]:
        with pytest.raises(ValueError, match=told):
            config(**options)
    with pytest.raises(TypeError, match="memory_shering"):
        config(memory_shering="shared")
    for options, told in [
        ({"layers_to_transform": [3]}, "the model has 3 layers"),
        ({"target_modules": ["mlp"]}, "expected attention modules"),
        ({"target_modules": ["attention"]}, "no attention module found in layers"),
        ({"target_modules": r"model\.layers\.0\.self_attn"}, r"no attention module found in layers \[1, 2\]"),
        ({"head_dim": 64}, "head_dim: expected 32"),
        ({"features": -1}, "features"),
    ]:
        model = build()
        with pytest.raises(ValueError, match=told):
            get_peft_model(model, config(**options))
        # The model is still one that can be adapted.
        assert not any(isinstance(m, PrefixTuningPlusLayer) for m in model.modules())


def test_attention_modules_can_be_named():
    a = get_peft_model(build(), config(target_modules=["self_attn"], layers_to_transform=[0, 2]))
    b = get_peft_model(build(), config(target_modules=r".*\.layers\.\d\.self_attn", layers_to_transform=[0, 2]))
    c = get_peft_model(build(), config(layers_to_transform=[0, 2]))
    assert memories(a).keys() == memories(b).keys() == memories(c).keys()
    assert len(memories(a)) == 2


def test_an_unknown_family_says_what_to_do():
    model = build()
    model.config.model_type = "novel"
    with pytest.raises(ValueError, match="name its attention modules in target_modules"):
        get_peft_model(model, config())
    fill(named := get_peft_model(model, config(target_modules=["self_attn"])))
    expected = adapted()
    assert torch.equal(logits(named, IDS), logits(expected, IDS))
    with pytest.raises(ValueError, match="query_tap pre_rope"):
        get_peft_model(model.__class__(model.config), config(target_modules=["self_attn"], query_tap="pre_rope"))


def test_attention_of_another_kind_is_refused():
    model = build()

    class Own(type(model.model.layers[0].self_attn)):
        def forward(self, hidden_states, **kwargs):
            return self.o_proj(self.q_proj(hidden_states)), None

    for layer in model.model.layers:
        layer.self_attn.__class__ = Own
    with pytest.raises(ValueError, match="does not go through the attention interface"):
        get_peft_model(model, config())


def test_an_adapter_that_is_not_asked_for_ends_the_pass():
    model = adapted()
    layer = model.base_model._layers()[0]
    layer.base_layer.forward = lambda *a, ptplus_call=None, **k: (k["hidden_states"], None)
    with pytest.raises(RuntimeError, match="would have had no effect"):
        logits(model, IDS)


def test_several_adapters():
    model = adapted()
    one = logits(model, IDS)
    model.add_adapter("other", config(query_tap="pre_rope", layers_to_transform=[1], feature_map="relu"))
    assert torch.equal(logits(model, IDS), one)
    model.set_adapter("other")
    assert list(memories(model)) == ["base_model.model.model.layers.1.self_attn.prefix_memory.other"]
    fill(model, seed=9)
    two = logits(model, IDS)
    assert not torch.equal(one, two)
    with model.disable_adapter():
        plain = logits(model, IDS)
    assert torch.equal(plain, logits(build(), IDS))
    assert torch.equal(logits(model, IDS), two)
    model.base_model.set_adapter(["default", "other"])
    both = logits(model, IDS)
    with ptplus_recording() as terms:
        logits(model, IDS)
    assert not torch.equal(both, one)
    assert not torch.equal(both, two)
    assert sorted(terms) == [0, 1, 2]
    model.set_adapter("default")
    assert torch.equal(logits(model, IDS), one)
    model.delete_adapter("default")
    model.set_adapter("other")
    assert torch.equal(logits(model, IDS), two)
    assert torch.equal(logits(model.unload(), IDS), plain)


def ptplus_recording():
    from ptplus import _attention

    return _attention.recording()


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ({}, {}),
        ({"memory_scale": 0.5}, {"memory_scale": 2.0}),
        ({}, {"memory_sharing": "shared"}),
        ({"memory_sharing": "per_kv_head"}, {"memory_sharing": "shared"}),
        ({"layers_to_transform": [0]}, {"layers_to_transform": [1, 2]}),
        ({"query_scale": 0.5}, {"query_scale": 2.0}),
        ({"features": 16}, {"features": 24, "feature_bias": True}),
        ({"features": 16, "memory_sharing": "per_kv_head"}, {}),
        ({"features": 16, "layers_to_transform": [0]}, {"layers_to_transform": [1, 2]}),
    ],
    ids=str,
)
def test_a_weighted_sum_is_exact(first, second, tmp_path):
    base = build()
    model = get_peft_model(base, config(**first))
    model.add_adapter("b", config(**second))
    model.base_model.set_adapter(["default", "b"])
    fill(model)
    weights = [0.75, -0.5]
    layers = model.base_model._layers()
    q = torch.randn(2, 4, 5, 32)
    model.base_model.add_weighted_adapter(["default", "b"], weights, "mixed")
    for layer in layers.values():
        sums = 0.0
        for name, weight in zip(["default", "b"], weights, strict=True):
            layer._active_adapter = [name]
            if name in layer.conventions:
                sums = sums + weight * layer._term(q, None).double()
        layer._active_adapter = ["mixed"]
        mixed = layer._term(q, None).double()
        assert (mixed - sums).abs().max() <= 1e-5 * max(1.0, sums.abs().max().item())
    model.set_adapter("mixed")
    found = logits(model, IDS)
    model.save_pretrained(tmp_path / "out", selected_adapters=["mixed"])
    again = PeftModel.from_pretrained(build(), tmp_path / "out/mixed")
    assert torch.equal(logits(again, IDS), found)
    # One adapter with weight 1 is itself, to the bit.
    model.base_model.add_weighted_adapter(["b"], [1.0], "same")
    for layer in layers.values():
        if "b" in layer.conventions:
            assert torch.equal(layer.parts("b")["memory"], layer.parts("same")["memory"])


def test_a_sum_that_has_no_form_is_refused():
    model = adapted()
    for i, (options, told) in enumerate(
        [
            ({"feature_map": "relu"}, "feature_map"),
            ({"query_tap": "pre_rope"}, "query_tap"),
            ({"normalizer": True}, "normalizer"),
        ]
    ):
        model.add_adapter(f"x{i}", config(**options))
        with pytest.raises(ValueError, match=told):
            model.base_model.add_weighted_adapter(["default", f"x{i}"], [1.0, 1.0], "mixed")
    model.add_adapter("y", config(normalizer=True, feature_map="elu"))
    model.base_model.set_adapter(["x2", "y"])
    fill(model)
    with pytest.raises(ValueError, match="no common denominator"):
        model.base_model.add_weighted_adapter(["x2", "y"], [1.0, 1.0], "mixed")
    for adapters, weights, name in [
        (["none"], [1.0], "m"),
        (["default"], [1.0, 2.0], "m"),
        ([], [], "m"),
        (["default"], [1.0], "y"),
    ]:
        with pytest.raises(ValueError, match="adapter"):
            model.base_model.add_weighted_adapter(adapters, weights, name)
    assert "mixed" not in model.peft_config


def test_merging_is_refused_with_the_reason():
    model = adapted()
    for merge in (model.merge_and_unload, model.merge_adapter):
        with pytest.raises(ValueError, match="depends on the query of every token"):
            merge()
    with pytest.raises(ValueError, match="adapter_names"):
        model(input_ids=IDS, adapter_names=["default", "default"])
    assert not model.base_model.supports_lora_conversion()


def test_gradient_checkpointing_gives_the_same_gradients():
    def gradients(**kwargs):
        model = adapted(query_tap="pre_rope").train()
        if kwargs:
            model.gradient_checkpointing_enable(**kwargs)
            model.enable_input_require_grads()
        model(input_ids=IDS, labels=IDS, use_cache=False).loss.backward()
        return {n: p.grad for n, p in model.named_parameters() if p.requires_grad and p.grad is not None}

    plain = gradients()
    assert len(plain) == 3
    for reentrant in (False, True):
        again = gradients(gradient_checkpointing_kwargs={"use_reentrant": reentrant})
        assert again.keys() == plain.keys()
        assert all(torch.allclose(again[n], plain[n], atol=1e-6) for n in plain)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("how", ["weights", "autocast"])
def test_training_in_16_bits_keeps_memories_in_f32(dtype, how):
    base = build()
    model = get_peft_model(base.to(dtype) if how == "weights" else base, config())
    fill(model)
    assert {p.dtype for p in memories(model).values()} == {torch.float32}
    with torch.autocast("cpu", dtype=dtype, enabled=how == "autocast"), ptplus_recording() as terms:
        model(input_ids=IDS, labels=IDS, use_cache=False).loss.backward()
    assert {p.grad.dtype for p in model.parameters() if p.requires_grad} == {torch.float32}
    # The term is that of the F32 function at the query that attention used, not rounded to 16 bits on the way.
    q, term = terms[0]
    layer = model.base_model._layers()[0]
    assert torch.equal(term, layer._term(q.to(q.dtype), None).detach())


@pytest.mark.parametrize("tap", ["post_rope", "pre_rope"])
def test_compiled_models_compute_the_same(tap):
    model = adapted(query_tap=tap)
    expected = logits(model, IDS)
    compiled = torch.compile(model, backend="eager")
    assert torch.allclose(logits(compiled, IDS), expected, atol=1e-6)
    with model.disable_adapter():
        assert torch.allclose(logits(compiled, IDS), logits(build(), IDS), atol=1e-6)
    explained = torch._dynamo.explain(lambda ids: model(input_ids=ids, use_cache=False).logits)(IDS)
    assert explained.graph_break_count == 0, explained.break_reasons


def test_a_base_in_4_bits(tmp_path):
    folder = save_base(build(intermediate_size=128), tmp_path / "base")  # whole blocks of 64
    quantized = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.bfloat16)
    base = AutoModelForCausalLM.from_pretrained(folder, quantization_config=quantized, device_map="cpu")
    assert type(base.model.layers[0].self_attn.q_proj).__name__ == "Linear4bit"
    # In evaluation mode bitsandbytes repacks weights for its kernel, which has no gradient, and never unpacks them again.
    base = peft.prepare_model_for_kbit_training(base, use_gradient_checkpointing=False).train()
    plain = logits(base, IDS)
    model = get_peft_model(base, config())
    assert torch.equal(logits(model.train(), IDS), plain)
    assert {p.dtype for p in memories(model).values()} == {torch.float32}
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    losses = []
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="memories")
        for _ in range(4):
            loss = model(input_ids=IDS, labels=IDS, use_cache=False).loss
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            losses.append(loss.item())
    assert losses[-1] < 0.8 * losses[0]

    # The probe is of the base that `ptplus` reads.
    with pytest.raises(ValueError, match=r"quantized.*load the base with dtype"):
        ptplus.save_probe(model, IDS, tmp_path / "never")
    model.save_pretrained(tmp_path / "out")
    whole = PeftModel.from_pretrained(load_base(folder), tmp_path / "out")
    ptplus.save_probe(whole, IDS, tmp_path / "probe.safetensors")
    probe = tmp_path / "probe.safetensors"
    document = ptplus.run("convert", tmp_path / "out", output=tmp_path / "a.gguf", base=folder, probe=probe)
    assert document["verification"]["metrics"]["max_abs"] < 2e-4

    # As TRL does it for a quantized base.
    for p in model.parameters():
        p.data = p.data.to(torch.bfloat16) if p.requires_grad else p.data
    with pytest.warns(UserWarning, match="memories are trained in 16 bits"):
        model.train()(input_ids=IDS)


def test_ddp(tmp_path):
    """Two processes on halves of a batch: the gradients of the whole batch, and the same memories everywhere."""
    code = """if True:
        import sys, torch, torch.distributed as dist
        sys.path.insert(0, sys.argv[1])
        from tiny import DTYPE, build, config, fill, tokens
        from peft import get_peft_model
        rank = int(sys.argv[2])
        dist.init_process_group("gloo", init_method="file://" + sys.argv[3], rank=rank, world_size=2)
        model = get_peft_model(build(), config())
        fill(model)
        wrapped = torch.nn.parallel.DistributedDataParallel(model)
        ids = tokens()[rank : rank + 1]
        wrapped(input_ids=ids, labels=ids, use_cache=False).loss.backward()
        if rank == 0:
            torch.save({n: p.grad for n, p in model.named_parameters() if p.requires_grad}, sys.argv[4])
        dist.destroy_process_group()
    """
    here = os.path.dirname(__file__)
    arguments = [str(tmp_path / "store"), str(tmp_path / "grads.pt")]
    ranks = [subprocess.Popen([sys.executable, "-c", code, here, str(r), *arguments]) for r in range(2)]
    assert [p.wait() for p in ranks] == [0, 0]
    model = adapted()
    model(input_ids=IDS, labels=IDS, use_cache=False).loss.backward()
    expected = {n: p.grad for n, p in model.named_parameters() if p.requires_grad}
    found = torch.load(tmp_path / "grads.pt")
    assert found.keys() == expected.keys()
    assert all(torch.allclose(found[n], expected[n], atol=1e-6) for n in expected)


@pytest.mark.parametrize("tap", ["post_rope", "pre_rope"])
def test_threads_do_not_mix_up(tap):
    """One model, asked by several threads at once."""
    model = adapted(query_tap=tap)
    rows = [IDS, IDS.flip(0), IDS.flip(1), IDS[:1]] * 4
    expected = [logits(model, ids) for ids in rows]
    with ThreadPoolExecutor(4) as threads:
        found = list(threads.map(lambda ids: logits(model, ids), rows))
    assert all(torch.equal(f, e) for f, e in zip(found, expected, strict=True))


def test_copies_and_pickles_are_the_same_model():
    model = adapted(query_tap="pre_rope", features=8)
    expected = logits(model, IDS)
    for again in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(logits(again, IDS), expected)
    # The attention implementation stays a choice.
    model.get_base_model().config._attn_implementation = "eager"
    assert torch.allclose(logits(model, IDS), expected, atol=1e-5)


def rewrite(folder, change) -> None:
    path = folder / "adapter_model.safetensors"
    save_file(change(load_file(path)), path, metadata={"format": "pt"})


def test_loading_refuses_what_does_not_fit(tmp_path):
    out = tmp_path / "out"

    def refused(change, told):
        adapted(features=16, feature_bias=True).save_pretrained(out)
        rewrite(out, change)
        with pytest.raises((ValueError, RuntimeError), match=told):
            PeftModel.from_pretrained(build(), out)

    def without(part):
        return lambda t: {k: v for k, v in t.items() if part not in k}

    refused(without("layers.1."), "missing layer 1")
    refused(without("layers.1.self_attn.prefix_feature_weight"), "every layer has the same parts")
    refused(without("prefix_memory"), "a memory")
    refused(without("prefix_feature_weight"), "a feature bias without feature weights")
    refused(lambda t: {**t, "base_model.model.model.layers.7.self_attn.prefix_memory": torch.zeros(4, 16, 32)}, "left over")
    refused(lambda t: {**t, "layers.7.memory": torch.zeros(4, 16, 32)}, "left over layers.7.memory")
    refused(lambda t: {k: v[:, :8].contiguous() for k, v in t.items()}, "the configuration states")
    refused(lambda t: {k: v[:2].contiguous() for k, v in t.items()}, r"expected \[4, 16\], found \[2, 16\]")
    model = adapted()
    model.save_pretrained(out)
    with pytest.raises(ValueError, match="num_layers: expected 2"):
        PeftModel.from_pretrained(build("qwen2"), out)


def test_what_peft_saved_is_read_without_peft(tmp_path):
    model = adapted(features=16, feature_bias=True, normalizer=True, query_tap="pre_rope", layers_to_transform=[0, 2])
    expected = logits(model, IDS)
    model.save_pretrained(tmp_path)
    base = build()
    ptplus.attach(base, ptplus.load_adapter(tmp_path))
    assert torch.equal(logits(base, IDS), expected)
    ptplus.save_adapter(base.ptplus_adapter, tmp_path / "canonical")
    assert torch.equal(logits(PeftModel.from_pretrained(build(), tmp_path / "canonical"), IDS), expected)
    rewrite(tmp_path, lambda t: {k.replace("prefix_", "my_"): v for k, v in t.items()})
    with pytest.raises(ValueError, match="is no tensor of a canonical adapter"):
        ptplus.load_adapter(tmp_path)


def test_unknown_keys_of_a_file_are_kept(tmp_path):
    out, again = tmp_path / "out", tmp_path / "again"
    adapted().save_pretrained(out)
    document = json.loads((out / "adapter_config.json").read_text())
    added = {"ptplus_base_fingerprint": "x", "somebody's": [1, {"a": None}], "ptplus_widened_from": {"a": "BF16"}}
    (out / "adapter_config.json").write_text(json.dumps({**document, **added}))
    PeftModel.from_pretrained(build(), out).save_pretrained(again)
    assert json.loads((again / "adapter_config.json").read_text()) == {**document, **added}
    # Weights that are trained further are no widened ones any more.
    PeftModel.from_pretrained(build(), out, is_trainable=True).save_pretrained(again)
    kept = json.loads((again / "adapter_config.json").read_text())
    assert "ptplus_widened_from" not in kept
    assert kept["ptplus_base_fingerprint"] == "x"


def test_what_is_saved_is_the_same_from_run_to_run(tmp_path):
    for name in ("a", "b"):
        adapted(target_modules={"self_attn", "attn"}).save_pretrained(tmp_path / name)
    for file in ("adapter_config.json", "adapter_model.safetensors"):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()


def test_loading_without_spending_memory(tmp_path):
    model = adapted()
    model.save_pretrained(tmp_path)
    lazy = PeftModel.from_pretrained(build(), tmp_path, low_cpu_mem_usage=True)
    assert torch.equal(logits(lazy, IDS), logits(model, IDS))
    half = PeftModel.from_pretrained(build().to(torch.bfloat16), tmp_path, low_cpu_mem_usage=True, is_trainable=True)
    assert {p.dtype for p in memories(half).values()} == {torch.float32}


def test_the_type_is_pefts_own_kind(tmp_path):
    member = peft.PeftType.PREFIX_TUNING_PLUS
    assert member is peft.PeftType("PREFIX_TUNING_PLUS") is pickle.loads(pickle.dumps(member))
    assert member == "PREFIX_TUNING_PLUS"
    assert member in list(peft.PeftType)
    assert isinstance(config().peft_type, peft.PeftType)
    config().save_pretrained(tmp_path)
    assert isinstance(peft.PeftConfig.from_pretrained(tmp_path), PrefixTuningPlusConfig)


@pytest.mark.parametrize(
    ("lacks", "told"),
    [
        (
            "from peft.tuners.tuners_utils import BaseTuner as c; del c._remap_adapter_state_dict_for_load",
            "needs 0.21.2 or later",
        ),
        ("import transformers.modeling_utils as m; del m.ALL_ATTENTION_FUNCTIONS", "needs 4.48 or later"),
    ],
)
def test_packages_that_are_too_old_are_named(lacks, told):
    code = f"import peft; {lacks}\nimport ptplus.peft"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert told in done.stderr


def test_a_peft_with_a_method_of_that_name_is_left_alone():
    code = """if True:
        import enum, peft
        from peft.utils import peft_types
        T = peft_types.PeftType
        member = str.__new__(T, "PREFIX_TUNING_PLUS"); member._name_ = member._value_ = "PREFIX_TUNING_PLUS"
        T._member_map_[member._name_] = T._value2member_map_[member._name_] = member
        T._member_names_.append(member._name_); type.__setattr__(T, member._name_, member)
        from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING as configs, PEFT_TYPE_TO_TUNER_MAPPING as tuners
        configs[member], tuners[member] = peft.LoraConfig, peft.LoraModel
        try:
            import ptplus.peft
        except ImportError as e:
            assert "of its own" in str(e), e
            assert configs[member] is peft.LoraConfig
            print("refused")
        del configs[member], tuners[member]
        import ptplus.peft                      # a member alone does no harm
        print(configs[member].__name__)
    """
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout.split() == ["refused", "PrefixTuningPlusConfig"], done.stderr
