"""Adds terms inside transformers' attention, whatever implementation computes the rest of it.

Every attention of transformers since 4.48 ends in a call of the function that its configuration names (eager, sdpa,
flash_attention_2, ...), with the query as attention uses it. `prepare` gives one attention module a copy of its
configuration that names a function of ours; that one calls the function which the model's own configuration names, and
adds the term to what it returns. Masks and caches follow the model's configuration, which stays as it is.

Which term belongs to a call travels with the call, as the keyword argument `ptplus_call`: modules hold no state that two
threads, two replicas or a recomputation could mix up.
"""

from __future__ import annotations

import contextlib
import copy
import inspect
import threading
from collections.abc import Callable, Iterator
from typing import Any

import torch
import transformers

try:
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
except ImportError as e:
    raise ImportError(
        f"transformers {transformers.__version__} has no interface to add a term in attention: ptplus needs 4.48 or later"
    ) from e

from ptplus._families import Family

_IMPLEMENTATION = "ptplus"
# layer -> (query after RoPE [B, H, T, D], term [B, H, T, D_v]), while `recording`.
_record: dict[int, tuple[torch.Tensor, torch.Tensor]] | None = None
# The last query before its rotation: attention takes it up in the same thread, before the next one is computed.
_tapped = threading.local()

# (query after RoPE, query before it or None) -> term; both [B, H, T, D], the term [B, H, T, D_v].
TermFunction = Callable[[torch.Tensor, "torch.Tensor | None"], torch.Tensor]


class Call:
    """One forward pass of one attention module: what to add, and whether it was added."""

    def __init__(self, term: TermFunction) -> None:
        self.term = term
        self.done = False

    def check(self) -> None:
        """Raises `RuntimeError` where attention went another way: an adapter that silently does nothing is the worst."""
        if not self.done:
            raise RuntimeError(
                "attention returned without asking for the adapter's term: this model's attention does not go through "
                "transformers' attention interface, and the adapter would have had no effect"
            )


class _Site:
    """What a prepared attention module was, and how its queries are tapped."""

    def __init__(self, config: Any, eager: Any, functions: Any) -> None:
        self.config = config
        self.eager = eager
        self.functions = functions
        self.family: Family | None = None
        self.hook: Any = None

    def function(self) -> Any:
        implementation = self.config._attn_implementation
        if hasattr(self.functions, "get_interface"):
            return self.functions.get_interface(implementation, self.eager)
        return self.eager if implementation in (None, "eager") else self.functions[implementation]


def prepare(attention: torch.nn.Module, pre_rope: Family | None = None) -> None:
    """Makes an attention module take `ptplus_call`. `pre_rope`: also tap its query before RoPE. Again is harmless."""
    site: _Site | None = getattr(attention, "_ptplus_site", None)
    if site is None:
        defined_in = inspect.unwrap(type(attention).forward).__globals__
        if "eager_attention_forward" not in defined_in or "ALL_ATTENTION_FUNCTIONS" not in defined_in:
            raise ValueError(
                f"{type(attention).__name__} does not go through the attention interface in transformers "
                f"{transformers.__version__}"
            )
        site = _Site(attention.config, defined_in["eager_attention_forward"], defined_in["ALL_ATTENTION_FUNCTIONS"])
        config = copy.copy(site.config)
        config.__dict__["_attn_implementation_internal"] = _IMPLEMENTATION
        if config._attn_implementation != _IMPLEMENTATION:
            raise ValueError("this version of transformers keeps the name of the attention function elsewhere")
        attention.config = config
        object.__setattr__(attention, "_ptplus_site", site)
        ALL_ATTENTION_FUNCTIONS[_IMPLEMENTATION] = _attention
    if pre_rope is not None and site.family is None:
        site.family = pre_rope
        site.hook = attention.get_submodule(pre_rope.query).register_forward_hook(_keep_query)


def release(attention: torch.nn.Module) -> None:
    """Undoes `prepare`."""
    site: _Site | None = getattr(attention, "_ptplus_site", None)
    if site is None:
        return
    attention.config = site.config
    if site.hook is not None:
        site.hook.remove()
    object.__delattr__(attention, "_ptplus_site")


def _keep_query(module: torch.nn.Module, inputs: Any, output: torch.Tensor) -> None:
    _tapped.query = output


def _query_before_rope(site: _Site, query: torch.Tensor) -> torch.Tensor | None:
    if site.family is None:
        return None
    kept: torch.Tensor = _tapped.query
    _tapped.query = None  # nor hold the graph any longer
    if site.family.heads_first:
        return kept
    batch, heads, length, dim = query.shape
    return kept.reshape(batch, length, -1)[..., : heads * dim].reshape(batch, length, heads, dim).transpose(1, 2)


def _attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    *args: Any,
    ptplus_call: Call | None = None,
    **kwargs: Any,
) -> Any:
    site: _Site = module._ptplus_site  # type: ignore[assignment]
    out, weights = site.function()(module, query, key, value, attention_mask, *args, **kwargs)  # [B, T, H, D_v]
    before_rope = _query_before_rope(site, query)
    if ptplus_call is None:
        return out, weights
    term = ptplus_call.term(query, before_rope)
    ptplus_call.done = True
    if _record is not None:
        _record[int(module.layer_idx)] = (query.detach().float().cpu(), term.detach().float().cpu())  # type: ignore[arg-type]
    return out + term.transpose(1, 2).to(out.dtype), weights


@contextlib.contextmanager
def recording() -> Iterator[dict[int, tuple[torch.Tensor, torch.Tensor]]]:
    """Collects what every prepared attention module sees and adds."""
    global _record
    before, _record = _record, {}
    try:
        yield _record
    finally:
        _record = before
