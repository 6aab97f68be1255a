"""Prefix-Tuning+ adapters: train them, record what they compute, and take them anywhere with the `ptplus` program.

    import ptplus.peft                                    # registers PREFIX_TUNING_PLUS with PEFT
    model = get_peft_model(base, ptplus.peft.PrefixTuningPlusConfig(feature_map="elu"))
    ...train, model.save_pretrained("out")...
    ptplus.save_probe(model, ids, "out/probe.safetensors")
    ptplus.run("convert", "out", output="a.gguf", base="BASE", probe="out/probe.safetensors")

`run` and the exceptions need nothing but the program. Everything else needs torch, safetensors and
transformers (`pip install 'ptplus[torch]'`), and `ptplus.peft` needs PEFT (`pip install 'ptplus[peft]'`); they are
imported when first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from ptplus._program import (
    DoesNotFit,
    Error,
    IntegrityFailed,
    InvalidInput,
    NumbersDiffer,
    Unsupported,
    UsageError,
    find_program,
    run,
)

if TYPE_CHECKING:
    from ptplus._adapter import Adapter, attach, detach, load_adapter, new_adapter, save_adapter
    from ptplus._probe import save_probe

__all__ = [
    "Adapter",
    "DoesNotFit",
    "Error",
    "IntegrityFailed",
    "InvalidInput",
    "NumbersDiffer",
    "Unsupported",
    "UsageError",
    "attach",
    "detach",
    "find_program",
    "load_adapter",
    "new_adapter",
    "run",
    "save_adapter",
    "save_probe",
]

# Where the names are that need torch.
_LAZY = {
    "Adapter": "ptplus._adapter",
    "attach": "ptplus._adapter",
    "detach": "ptplus._adapter",
    "load_adapter": "ptplus._adapter",
    "new_adapter": "ptplus._adapter",
    "save_adapter": "ptplus._adapter",
    "save_probe": "ptplus._probe",
}


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module 'ptplus' has no attribute {name!r}")
    try:
        module = importlib.import_module(_LAZY[name])
    except ModuleNotFoundError as e:
        if e.name in ("torch", "transformers", "safetensors"):
            raise ImportError(f"ptplus.{name} needs {e.name}: pip install 'ptplus[torch]'") from e
        raise
    value = getattr(module, name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
