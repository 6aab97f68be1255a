"""The package computes what the fixtures' reference computed, term by term, with PEFT and without it."""

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from tiny import MODELS, family_exists, load_base

import ptplus
import ptplus.peft

NAMES = sorted(p.name for p in MODELS.iterdir() if family_exists(p.name.split("-")[0]))


def close(a: torch.Tensor, b: torch.Tensor) -> bool:
    # The last digits differ between versions of torch.
    return (a.double() - b.double()).abs().max().item() <= 1e-5


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
@pytest.mark.parametrize("how", ["attach", "peft"])
def test_a_fixture(name, implementation, how, tmp_path):
    m = MODELS / name
    expected = load_file(m / "probe.safetensors")
    model = load_base(m / "base", attn_implementation=implementation)
    if how == "peft":
        model = PeftModel.from_pretrained(model, m / "adapter")
    else:
        ptplus.attach(model, ptplus.load_adapter(m / "adapter"))
    positions = expected["positions"].tolist() if "positions" in expected else None
    ptplus.save_probe(model, expected["input_ids"], tmp_path / "probe.safetensors", positions=positions)
    found = load_file(tmp_path / "probe.safetensors")
    assert found.keys() == expected.keys()
    wrong = [key for key in expected if not close(found[key], expected[key])]
    assert not wrong
    model = model.unload() if how == "peft" else (ptplus.detach(model), model)[1]
    with torch.no_grad():
        assert close(model(expected["input_ids"]).logits, expected["base_logits"])
    assert not any(hasattr(module, "_ptplus_site") for module in model.modules())
