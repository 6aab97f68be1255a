"""Prefix-Tuning+ as a PEFT method. Importing this module registers PREFIX_TUNING_PLUS with PEFT.

    import ptplus.peft
    from peft import get_peft_model

    model = get_peft_model(base, ptplus.peft.PrefixTuningPlusConfig(feature_map="elu", task_type="CAUSAL_LM"))

After that everything of PEFT works with it: trainers, several adapters, `save_pretrained`, `PeftModel.from_pretrained`,
`AutoPeftModelForCausalLM`. What `save_pretrained` writes, the `ptplus` program reads without flags; what
`ptplus convert --to safetensors` writes, PEFT reads.

PEFT keeps its methods in an enumeration, to which this module adds a member. Where PEFT itself should one day have a
method of that name, the import raises `ImportError`: two methods of one name could read each other's files and
compute something else.
"""

try:
    import peft as _peft  # noqa: F401
except ModuleNotFoundError as e:
    raise ImportError("ptplus.peft needs PEFT: pip install 'ptplus[peft]'") from e

from ptplus.peft._config import PrefixTuningPlusConfig
from ptplus.peft._layer import PrefixTuningPlusLayer
from ptplus.peft._model import PrefixTuningPlusModel
from ptplus.peft._register import register

__all__ = ["PrefixTuningPlusConfig", "PrefixTuningPlusLayer", "PrefixTuningPlusModel"]

register(PrefixTuningPlusConfig, PrefixTuningPlusModel)
