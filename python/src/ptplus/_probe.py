"""Probes: what a model computes, recorded for `ptplus convert --probe` and `ptplus verify --probe`."""

from __future__ import annotations

import contextlib
import os
import warnings
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from safetensors.torch import save_file

from ptplus import _attention

_HALF = (torch.float16, torch.bfloat16)
_F32_REMEDY = (
    "load the base with dtype=torch.float32 (then the adapter, with PeftModel.from_pretrained), and make the probe there"
)


def save_probe(
    model: Any,
    input_ids: Any,
    path: str | os.PathLike[str],
    *,
    base: Any = None,
    positions: Sequence[int] | None = None,
    taps: bool = True,
) -> None:
    """Records what `model` computes on `input_ids` [B, T] (rows without padding), with the adapter and without it.

    `model`: a PEFT model of any method, a model with an adapter of `ptplus.attach`, a model with PEFT's layers in it
    (transformers' `add_adapter`, `inject_adapter_in_model`), or anything that is called with input_ids and returns logits
    [B, T, V] (or an object with `.logits`, or a tuple that begins with them). Wrappers (DDP, torch.compile, accelerate)
    are looked through.
    `base`: what computes the logits without the adapter, where `model` cannot say by itself: a model or a callable.
    Without it the probe has no `base_logits`, and ptplus cannot tell a wrong base from a wrong adapter.
    `positions`: those whose logits are kept (a vocabulary of 150,000 makes 0.6 MB each); None keeps all.
    `taps`: also keep every adapted layer's query and term where this package adds the term; with them ptplus finds
    unknown conventions in seconds.

    The probe is computed in F32. A model in F16 or BF16 is widened for the time of the call, which is exact, and
    a warning says so. Raises `ValueError` for quantized weights, for computation that is rounded to 16 bits all the same, for
    NaN and Inf, for padding, and for an adapter that changes nothing: a probe of such would prove nothing.
    """
    models = [_unwrapped(m) for m in (model, base) if m is not None]
    ids = _token_ids(input_ids, models[0])
    keep = _kept(positions, ids.shape[1])
    widened: set[torch.dtype] = set()
    with torch.no_grad(), contextlib.ExitStack() as stack:
        for m in models:
            if isinstance(m, torch.nn.Module):
                stack.enter_context(_in_f32(m, widened))
                stack.enter_context(_evaluating(m))
        stack.enter_context(_full_precision(ids.device))
        base_logits = None
        if base is not None:
            base_logits = _logits(models[1], ids, keep)
        elif (without := _without_adapter(models[0])) is not None:
            with without:
                base_logits = _logits(models[0], ids, keep)
        recorded = stack.enter_context(_attention.recording())
        logits = _logits(models[0], ids, keep)
    if widened:
        names = ", ".join(sorted(str(d).removeprefix("torch.") for d in widened))
        warnings.warn(f"{names} weights were widened to float32 while the probe was computed", stacklevel=2)
    if base_logits is None:
        warnings.warn(
            "the probe has no base_logits: state base=, the model without its adapter, so that ptplus can tell a wrong "
            "base from a wrong adapter",
            stacklevel=2,
        )
    tensors = {"input_ids": ids.cpu().contiguous(), "logits": logits}
    if base_logits is not None:
        tensors["base_logits"] = base_logits
    if positions is not None:
        tensors["positions"] = keep
    for layer, (q, term) in sorted(recorded.items()) if taps else ():
        tensors[f"q.{layer}"], tensors[f"term.{layer}"] = q.contiguous(), term.contiguous()
    for name, t in tensors.items():
        if t.is_floating_point() and not torch.isfinite(t).all():
            raise ValueError(f"{name} holds NaN or Inf")
    if base_logits is not None and torch.equal(logits, base_logits):
        raise ValueError("the adapter changes nothing: a probe of it would prove nothing")
    save_file(tensors, path)


def _unwrapped(model: Any) -> Any:
    """What DDP, DataParallel, DeepSpeed's engine and torch.compile wrap."""
    while isinstance(model, torch.nn.Module):
        inner = getattr(model, "_orig_mod", None)
        is_wrapper = type(model).__name__ in (
            "DistributedDataParallel",
            "DataParallel",
            "DeepSpeedEngine",
            "FullyShardedDataParallel",
        )
        if inner is None and is_wrapper:
            inner = model.module
        if inner is None:
            return model
        model = inner
    if not callable(model):
        raise TypeError(f"expected a model or a callable, found {type(model).__name__}")
    return model


def _token_ids(input_ids: Any, model: Any) -> torch.Tensor:
    """[B, T] i64 on the model's device, from a tensor, lists, or what a tokenizer returned."""
    if hasattr(input_ids, "keys"):
        mask = input_ids.get("attention_mask")
        if mask is not None and not torch.as_tensor(mask).bool().all():
            raise ValueError("input_ids are padded: a probe has rows without padding; give rows of one length")
        input_ids = input_ids["input_ids"]
    ids = torch.as_tensor(input_ids)
    if ids.is_floating_point() or ids.is_complex() or ids.dtype == torch.bool:
        raise ValueError(f"input_ids: expected integers, found {ids.dtype}")
    ids = ids.long()
    ids = ids[None] if ids.ndim == 1 else ids
    if ids.ndim != 2 or ids.numel() == 0:
        raise ValueError(f"input_ids: expected [B, T], found {list(ids.shape)}")
    embeddings = getattr(model, "get_input_embeddings", lambda: None)()
    vocabulary = getattr(embeddings, "num_embeddings", None)
    if ids.min() < 0 or (vocabulary is not None and ids.max() >= vocabulary):
        raise ValueError(f"input_ids: expected 0..{(vocabulary or 0) - 1}, found {int(ids.min())}..{int(ids.max())}")
    device = next((p.device for p in model.parameters()), None) if isinstance(model, torch.nn.Module) else None
    return ids if device is None else ids.to(device)


def _kept(positions: Sequence[int] | None, length: int) -> torch.Tensor:
    if positions is None:
        return torch.arange(length)
    keep = sorted({int(p) for p in positions})
    if not keep or keep[0] < 0 or keep[-1] >= length:
        raise ValueError(f"positions: expected some of 0..{length - 1}, found {list(positions)!r}")
    return torch.tensor(keep, dtype=torch.long)


def _logits(model: Any, ids: torch.Tensor, keep: torch.Tensor) -> torch.Tensor:
    """[B, P, V], F32, on the CPU."""
    is_transformers = hasattr(model, "config") and hasattr(model, "generate")
    out = model(input_ids=ids, use_cache=False) if is_transformers else model(ids)
    logits = out.get("logits") if hasattr(out, "keys") else getattr(out, "logits", None)
    if logits is None:
        logits = out[0] if isinstance(out, (tuple, list)) else out
    if not isinstance(logits, torch.Tensor) or logits.ndim != 3 or logits.shape[0] != ids.shape[0]:
        found = list(logits.shape) if isinstance(logits, torch.Tensor) else type(logits).__name__
        raise ValueError(f"expected logits [{ids.shape[0]}, {ids.shape[1]}, V], found {found}")
    # Methods with virtual tokens answer for those, too: they stand before the real ones.
    if logits.shape[1] < ids.shape[1]:
        raise ValueError(f"expected logits at {ids.shape[1]} positions, found {logits.shape[1]}")
    logits = logits[:, logits.shape[1] - ids.shape[1] :]
    if logits.dtype in _HALF:
        raise ValueError(f"the model returned logits in {logits.dtype}: {_F32_REMEDY}")
    return logits[:, keep.to(logits.device)].float().cpu().contiguous()


def _without_adapter(model: Any) -> contextlib.AbstractContextManager[Any] | None:
    """The context in which `model` is its own base, or None where it has no such thing."""
    if not isinstance(model, torch.nn.Module):
        return None
    if hasattr(model, "ptplus_adapter"):
        return _disabled(model.ptplus_adapter)
    if hasattr(model, "peft_config") and hasattr(model, "disable_adapter"):
        context: contextlib.AbstractContextManager[Any] = model.disable_adapter()
        return context
    layers = [m for m in model.modules() if hasattr(m, "base_layer") and hasattr(m, "enable_adapters")]
    return _layers_disabled(layers) if layers else None


@contextlib.contextmanager
def _disabled(adapter: Any) -> Iterator[None]:
    before, adapter.enabled = adapter.enabled, False
    try:
        yield
    finally:
        adapter.enabled = before


@contextlib.contextmanager
def _layers_disabled(layers: list[Any]) -> Iterator[None]:
    """Of adapters that were put into a model without PEFT's wrapper, as transformers does it."""
    enabled = [layer for layer in layers if not layer.disable_adapters]
    for layer in enabled:
        layer.enable_adapters(False)
    try:
        yield
    finally:
        for layer in enabled:
            layer.enable_adapters(True)


@contextlib.contextmanager
def _evaluating(model: torch.nn.Module) -> Iterator[None]:
    """Every module in evaluation mode (no dropout), and back as it was: PEFT's switches touch what is trained, too."""
    training = [m for m in model.modules() if m.training]
    trained = {p: p.requires_grad for p in model.parameters()}
    model.eval()
    try:
        yield
    finally:
        for m in training:
            m.training = True
        for p, is_trained in trained.items():
            p.requires_grad_(is_trained)


@contextlib.contextmanager
def _full_precision(device: torch.device) -> Iterator[None]:
    """No autocast, no TF32, no compiled code."""
    precision = torch.get_float32_matmul_precision()
    with contextlib.ExitStack() as stack:
        stack.enter_context(torch.autocast(device_type=device.type, enabled=False))
        if hasattr(torch.compiler, "set_stance"):
            stack.enter_context(torch.compiler.set_stance("force_eager"))
        torch.set_float32_matmul_precision("highest")
        try:
            yield
        finally:
            torch.set_float32_matmul_precision(precision)


@contextlib.contextmanager
def _in_f32(model: torch.nn.Module, widened: set[torch.dtype]) -> Iterator[None]:
    """The model in F32, its weights widened where they are in 16 bits (`widened`); and a look at what it computes in."""
    with contextlib.ExitStack() as stack:
        _refuse_quantized(model)
        widened.update(_widen(model, stack))
        _without_autocast_wrapper(model, stack)
        rounded: list[str] = []
        for name, module in model.named_modules():
            if next(module.children(), None) is None:
                stack.enter_context(module.register_forward_hook(_Rounded(name, rounded)))
        yield
        if rounded:
            raise ValueError(
                f"{rounded[0]} computes in 16 bits: the probe would be rounded, and ptplus would take the rounding "
                f"for a wrong base; {_F32_REMEDY}"
            )


class _Rounded:
    """Notes a module that returns 16 bits."""

    def __init__(self, name: str, rounded: list[str]) -> None:
        self.name = name
        self.rounded = rounded

    def __call__(self, module: torch.nn.Module, inputs: Any, output: Any) -> None:
        for t in output if isinstance(output, (tuple, list)) else (output,):
            if isinstance(t, torch.Tensor) and t.dtype in _HALF:
                self.rounded.append(self.name)


def _refuse_quantized(model: torch.nn.Module) -> None:
    named = getattr(model, "quantization_method", None)
    for name, p in model.named_parameters():
        if not p.is_floating_point() or p.dtype not in (*_HALF, torch.float32, torch.float64):
            raise ValueError(f"{name} is quantized ({named or p.dtype}), and the base that ptplus reads is not: {_F32_REMEDY}")
    if getattr(model, "is_quantized", False):
        raise ValueError(f"the base is quantized ({named}), and the one that ptplus reads is not: {_F32_REMEDY}")
    if any(p.device.type == "meta" for p in model.parameters()):
        raise ValueError("some weights are not in memory (offloaded or sharded): load the model whole, and make the probe there")


def _widen(model: torch.nn.Module, stack: contextlib.ExitStack) -> set[torch.dtype]:
    """F16 and BF16 to F32, and back at the end of `stack`: both ways are exact. Returns what was widened."""
    narrow = [(p, p.dtype) for p in model.parameters() if p.dtype in _HALF]
    # Buffers are computed, not stored: one in 16 bits was rounded, and widening would not bring it back.
    buffers = [(m, name, b) for m in model.modules() for name, b in m.named_buffers(recurse=False) if b.dtype in _HALF]
    for module, name, buffer in buffers:
        fresh = _fresh_buffer(module, name)
        if fresh is None:
            raise ValueError(f"{type(module).__name__}.{name} was rounded to {buffer.dtype}: {_F32_REMEDY}")
        setattr(module, name, fresh.to(buffer.device))
        stack.callback(setattr, module, name, buffer)
    for p, dtype in narrow:
        p.data = p.data.float()
        stack.callback(_narrow, p, dtype)
    return {dtype for _, dtype in narrow}


def _narrow(p: torch.nn.Parameter, dtype: torch.dtype) -> None:
    p.data = p.data.to(dtype)


def _fresh_buffer(module: torch.nn.Module, name: str) -> torch.Tensor | None:
    """Rotary frequencies as their module computes them from its configuration."""
    if "inv_freq" not in name or not hasattr(module, "config"):
        return None
    try:
        fresh = getattr(type(module)(config=module.config), name)
    except (AttributeError, TypeError):
        return None
    return fresh if isinstance(fresh, torch.Tensor) and fresh.dtype == torch.float32 else None


def _without_autocast_wrapper(model: torch.nn.Module, stack: contextlib.ExitStack) -> None:
    """accelerate leaves `forward` in an autocast context after training; the original is kept beside it."""
    for m in model.modules():
        if "_original_forward" in m.__dict__ and "forward" in m.__dict__:
            stack.callback(m.__dict__.__setitem__, "forward", m.__dict__["forward"])
            m.__dict__["forward"] = m.__dict__["_original_forward"]
