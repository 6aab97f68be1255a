"""Makes PEFT know the method."""

from __future__ import annotations

from typing import Any

import peft
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING, PEFT_TYPE_TO_TUNER_MAPPING
from peft.tuners.tuners_utils import BaseTuner
from peft.utils import PeftType, register_peft_method

from ptplus._method import PEFT_TYPE


def peft_type() -> Any:
    """The member of PEFT's enumeration, added where it is missing."""
    if PEFT_TYPE not in PeftType.__members__:
        # What the metaclass does for the members in an enumeration's body; it has no public way to add one later.
        member = str.__new__(PeftType, PEFT_TYPE)
        member._name_ = PEFT_TYPE
        member._value_ = PEFT_TYPE
        member.__objclass__ = PeftType
        member._sort_order_ = len(PeftType._member_names_)
        type.__setattr__(PeftType, PEFT_TYPE, member)
        PeftType._member_names_.append(PEFT_TYPE)
        PeftType._member_map_[PEFT_TYPE] = member
        PeftType._value2member_map_[PEFT_TYPE] = member
    return PeftType[PEFT_TYPE]


def register(config_cls: type, model_cls: type) -> None:
    """Once; raises `ImportError` where PEFT has another method of that name, or asks no tuner how to read a file."""
    if not hasattr(BaseTuner, "_remap_adapter_state_dict_for_load"):
        raise ImportError(
            f"PEFT {peft.__version__} would read an adapter's file without asking: ptplus.peft needs 0.21.2 or later"
        )
    member = peft_type()
    known = (PEFT_TYPE_TO_CONFIG_MAPPING.get(member), PEFT_TYPE_TO_TUNER_MAPPING.get(member))
    if known == (config_cls, model_cls):
        return
    if known != (None, None):
        raise ImportError(
            f"PEFT {peft.__version__} has a {PEFT_TYPE} of its own, which need not be the same function as this one: "
            f"use it without ptplus.peft, or install an older PEFT. `ptplus convert` reads checkpoints of either, "
            f"given a probe"
        )
    register_peft_method(name=PEFT_TYPE.lower(), config_cls=config_cls, model_cls=model_cls, prefix="prefix_")
