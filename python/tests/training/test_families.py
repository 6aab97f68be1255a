"""Every family: trained a little, saved, exported and proved, and back in PEFT with the same bits."""

import pytest
import torch
import transformers
from peft import PeftModel, get_peft_model
from tiny import (
    COMMON,
    FAMILIES,
    IS_TRANSFORMERS_4,
    build,
    config,
    family_exists,
    fill,
    load_base,
    logits,
    memories,
    save_base,
    tokens,
)

import ptplus
from ptplus._families import FAMILIES as TABLE

# What every released `ptplus` exports; more may have come since.
EXPORTED = {"llama", "mistral", "qwen2", "qwen3"}
# Before transformers 5 this one has attention of its own, which is refused.
BEFORE_5 = {"qwen2_moe"} if IS_TRANSFORMERS_4 else set()
HERE = [f for f in FAMILIES if family_exists(f) and f not in BEFORE_5]


def test_the_table_is_tested():
    assert TABLE.keys() - {"gemma3"} == FAMILIES.keys()


if BEFORE_5:

    @pytest.mark.parametrize("family", sorted(BEFORE_5))
    def test_attention_of_its_own_is_refused(family):
        with pytest.raises(ValueError, match="does not go through the attention interface in transformers 4"):
            get_peft_model(build(family), config())


@pytest.mark.parametrize("family", HERE)
@pytest.mark.parametrize("tap", ["post_rope", "pre_rope"])
def test_a_family_from_training_to_gguf_and_back(family, tap, tmp_path):
    base = build(family)
    folder = save_base(base, tmp_path / "base")
    ids = tokens()
    plain = logits(base, ids)
    model = get_peft_model(base, config(query_tap=tap))
    assert torch.equal(logits(model, ids), plain), "an untrained adapter changes nothing"
    trained = memories(model)
    assert len(trained) == base.config.num_hidden_layers
    assert all("prefix_memory" in name and p.dtype == torch.float32 for name, p in trained.items())

    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2, weight_decay=0.0)
    losses = []
    for _ in range(5):
        loss = model(input_ids=ids, labels=ids, use_cache=False).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    assert all(p.ne(0).any() for p in memories(model).values()), "every memory learned"

    adapted = logits(model, ids)
    out = tmp_path / "out"
    model.save_pretrained(out)
    ptplus.save_probe(model, ids, out / "probe.safetensors")
    again = PeftModel.from_pretrained(load_base(folder), out)
    assert torch.equal(logits(again, ids), adapted)
    try:
        document = ptplus.run("convert", out, output=tmp_path / "a.gguf", base=folder, probe=out / "probe.safetensors")
    except ptplus.Unsupported as e:
        if family in EXPORTED or e.code not in ("base-architecture", "config-unsupported"):
            raise
        return
    assert document["verification"]["metrics"]["max_abs"] < 2e-4
    ptplus.run("convert", tmp_path / "a.gguf", output=tmp_path / "back", to="safetensors")
    back = PeftModel.from_pretrained(load_base(folder), tmp_path / "back")
    assert (logits(back, ids) - adapted).abs().max().item() == 0


if family_exists("gemma3_text"):

    def test_a_vision_towers_attention_is_left_alone():
        text = {**COMMON, **FAMILIES["gemma3_text"][1]}
        vision = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 28}
        tokens_of_images = {"mm_tokens_per_image": 4, "image_token_index": 150, "boi_token_index": 151, "eoi_token_index": 152}
        whole = transformers.Gemma3Config(text_config=text, vision_config={**vision, "patch_size": 14}, **tokens_of_images)
        base = transformers.Gemma3ForConditionalGeneration(whole).eval()
        ids = tokens().clamp(max=140)
        plain = logits(base, ids)
        model = get_peft_model(base, config(query_tap="pre_rope"))
        assert torch.equal(logits(model, ids), plain)
        assert len(memories(model)) == 3
        assert all("language_model" in name for name in memories(model))
        fill(model)
        assert not torch.equal(logits(model, ids), plain)


@pytest.mark.parametrize("family", HERE)
def test_the_query_before_rope_is_that_at_position_0(family):
    """The rotation at position 0 is none: there both taps see the same, and elsewhere, with rotation, they do not."""
    base = build(family)
    seen = {}

    from ptplus import _attention
    from ptplus._families import attention_modules

    for i, module in attention_modules(base).items():
        _attention.prepare(module, TABLE[family])

        def term(query, before, i=i):
            seen[i] = (query, before)
            return torch.zeros_like(query)

        module.register_forward_pre_hook(
            lambda m, a, k, term=term: (a, {**k, "ptplus_call": _attention.Call(term)}), with_kwargs=True
        )
    logits(base, tokens())
    assert sorted(seen) == list(range(base.config.num_hidden_layers))
    for i, (query, before) in seen.items():
        assert before.shape == query.shape
        assert torch.allclose(before[:, :, 0], query[:, :, 0], atol=1e-6)
        has_rope = family != "smollm3" or base.config.no_rope_layers[i]
        assert torch.allclose(before, query, atol=1e-6) != bool(has_rope)


@pytest.mark.parametrize("family", [f for f in ("llama", "phi3", "qwen3", "olmo2") if f in HERE])
def test_generation_with_a_cache_is_that_without(family):
    model = get_peft_model(build(family), config(query_tap="pre_rope" if family == "phi3" else "post_rope"))
    fill(model)
    ids = tokens(1, 6)
    cached = model.generate(input_ids=ids, max_new_tokens=6, do_sample=False, use_cache=True)
    plain = model.generate(input_ids=ids, max_new_tokens=6, do_sample=False, use_cache=False)
    assert torch.equal(cached, plain)
    whole = logits(model, cached)
    assert torch.equal(whole[:, 5:-1].argmax(-1), cached[:, 6:])
