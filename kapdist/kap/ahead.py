"""The averages of all layers of a model at once, before its forward pass: few launches where launches cost.

On a GPU the weights of a layer are so small that averaging them one by one waits for launches. So a model that
`kapify` has changed averages them together as its forward pass begins, at once in the precision that autocast would
cast them to: that takes the place of autocast's cast of each weight. Some millions of entries at a time, so that
DDP can send the gradients of one lot while those of the next are worked out.

A layer finds its averages here while the model's forward pass runs, and works its own out where there are none: on
its own, within a part of the model, under torch.compile (which makes one kernel of average and cast itself), on a
CPU.
"""

import threading
import weakref
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from kapdist.kap.average import check_window
from kapdist.kap.draw import HAS_TRITON
from kapdist.kap.rows import Rows, rows_of, tables

_MOST_ENTRIES = 2**23  # 32 MiB in float32, about DDP's bucket


class Averages(NamedTuple):
    """What a layer finds: of these parameters as they were at this version."""

    weight: Tensor
    bias: Tensor | None
    source: Tensor
    version: int
    with_gradient: bool


class _Local(threading.local):
    def __init__(self) -> None:
        self.found: dict[nn.Module, Averages] = {}
        self.made_by: dict[nn.Module, list[nn.Module]] = {}


_local = _Local()
_lots: "weakref.WeakKeyDictionary[nn.Module, list[Lot]]" = weakref.WeakKeyDictionary()


def averages_of(layer: nn.Module, weight: Tensor) -> tuple[Tensor, Tensor | None] | None:
    """The layer's averaged weight and bias, if the forward pass that runs has made them for what is asked now."""
    if torch.compiler.is_compiling() or not _local.found:
        return None
    found = _local.found.get(layer)
    if found is None or found.source is not weight or found.version != weight._version:
        return None
    if found.weight.dtype != _precision(weight) or (torch.is_grad_enabled() and not found.with_gradient):
        return None
    return found.weight, found.bias


def average_ahead(model: nn.Module) -> None:
    """From now on the model's forward pass begins with its layers' averages."""
    if _before not in model._forward_pre_hooks.values():
        model.register_forward_pre_hook(_before)
        model.register_forward_hook(_after)


def no_longer_ahead(model: nn.Module) -> None:
    """Takes back what `average_ahead` did, in every part of the model."""
    for module in model.modules():
        for hooks in (module._forward_pre_hooks, module._forward_hooks):
            for key in [key for key, hook in hooks.items() if hook in (_before, _after)]:
                del hooks[key]


def _before(model: nn.Module, _: Any) -> None:
    if not torch.compiler.is_compiling() and not torch.jit.is_tracing():
        _make(model)


def _after(model: nn.Module, _: Any, __: Any) -> None:
    if not torch.compiler.is_compiling():
        _forget(model)


def _forget(model: nn.Module) -> None:
    for layer in _local.made_by.pop(model, []):
        _local.found.pop(layer, None)


def _make(model: nn.Module) -> None:
    _forget(model)  # what a pass that failed has left
    if model not in _lots:
        _lots[model] = [Lot(layers) for layers in _divided(_averaging(model))]
    made: list[nn.Module] = []
    for lot in _lots[model]:
        if not any(layer in _local.found for layer in lot.layers) and lot.can_be_made():
            _local.found.update(lot.make())
            made += lot.layers
    _local.made_by[model] = made


def _averaging(model: nn.Module) -> list[Any]:
    """The layers whose own weights are averaged, whatever the pass: neither grouped nor normalised before."""
    layers: list[Any] = [module for module in model.modules() if getattr(module, "averages_its_weight", False)]
    return layers


def _divided(layers: Sequence[Any]) -> Iterator[list[Any]]:
    lot: list[Any] = []
    for layer in layers:
        if lot and sum(each.weight.numel() for each in (*lot, layer)) > _MOST_ENTRIES:
            yield lot
            lot = []
        lot.append(layer)
    if lot:
        yield lot


def _worthwhile(device: torch.device) -> bool:
    return device.type == "cuda" and HAS_TRITON


def _precision(weight: Tensor) -> torch.dtype:
    """What autocast would cast the weight to."""
    kind = weight.device.type
    if weight.dtype != torch.float64 and torch.is_autocast_enabled(kind):
        return torch.get_autocast_dtype(kind)
    return weight.dtype


class Lot:
    """Layers that are averaged in one launch."""

    def __init__(self, layers: Sequence[Any]) -> None:
        self.layers = list(layers)
        self.rows = [rows for layer in layers for rows in _rows(layer)]
        self.after = sum(rows.after for rows in self.rows)
        self.tables: dict[torch.device, tuple[Tensor, Tensor]] = {}

    def parameters(self) -> list[Tensor]:
        return [each for layer in self.layers for each in (layer.weight, layer.bias) if each is not None]

    def can_be_made(self) -> bool:
        """Whether all are parameters of one kind, on a device where it pays, and of the sizes they had."""
        if any("weight" not in layer._parameters for layer in self.layers):
            return False  # made anew in every pass
        parameters = self.parameters()
        first = parameters[0]
        alike = all(each.device == first.device and each.dtype == first.dtype for each in parameters)
        sizes = [each.numel() for each in parameters] == [rows.before for rows in self.rows]
        plain = not any(torch._C._functorch.is_functorch_wrapped_tensor(each) for each in parameters)
        return (
            alike
            and sizes
            and plain
            and _worthwhile(first.device)
            and not any(each.is_inference() for each in parameters)
        )

    def make(self) -> Iterator[tuple[nn.Module, Averages]]:
        parameters = self.parameters()
        averaged = iter(_Averages.apply(self, _precision(parameters[0]), *parameters))
        for layer in self.layers:
            weight, bias = next(averaged), None if layer.bias is None else next(averaged)
            yield layer, Averages(weight, bias, layer.weight, layer.weight._version, torch.is_grad_enabled())

    def on(self, device: torch.device) -> tuple[Tensor, Tensor]:
        if device not in self.tables:
            self.tables[device] = tables(self.rows, device)
        return self.tables[device]


def _rows(layer: Any) -> list[Rows]:
    grid = check_window(layer.out_channels, layer.pool_size, layer.pool_stride, layer.layout)
    rests = [layer.weight[0].numel()] + ([] if layer.bias is None else [1])
    return [rows_of(grid, rest, layer.pool_size, layer.pool_stride) for rest in rests]


class _Averages(torch.autograd.Function):
    """The lot's parameters to their averages, as pieces of one tensor; no gradient where none comes back."""

    @staticmethod
    def forward(ctx: Any, lot: Lot, dtype: torch.dtype, *parameters: Tensor) -> tuple[Tensor, ...]:
        ctx.set_materialize_grads(False)
        ctx.lot, ctx.dtype, ctx.source = lot, dtype, parameters[0].dtype
        ctx.before = [_memory(each) for each in parameters]
        ctx.after = [
            ((rows.after // rows.rest, *shape[1:]), stride)
            for (shape, stride), rows in zip(ctx.before, lot.rows, strict=True)
        ]
        flat = _flat(parameters, ctx.before)
        return _pieces(_averaged(lot, flat, False, lot.after, dtype), ctx.after)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        lot = ctx.lot
        device = next(grad.device for grad in grads if grad is not None)
        whole = [
            torch.zeros(shape, dtype=ctx.dtype, device=device) if grad is None else grad
            for grad, (shape, _) in zip(grads, ctx.after, strict=True)
        ]
        numel = sum(rows.before for rows in lot.rows)
        found = _pieces(_averaged(lot, _flat(whole, ctx.after), True, numel, ctx.source), ctx.before)
        needed = ctx.needs_input_grad[2:]
        return (
            None,
            None,
            *(
                piece if need and grad is not None else None
                for piece, need, grad in zip(found, needed, grads, strict=True)
            ),
        )


_Memory = tuple[tuple[int, ...], tuple[int, ...]]  # shape and strides


def _averaged(lot: Lot, flat: Tensor, transposed: bool, numel: int, dtype: torch.dtype) -> Tensor:
    found: Tensor = torch.ops.kapdist.average_rows(flat, *lot.on(flat.device), transposed, numel, dtype)
    return found


def _memory(parameter: Tensor) -> _Memory:
    """Its shape, and its strides where kernels are rows in memory; else those that make them so."""
    is_last = parameter.dim() == 4 and parameter.is_contiguous(memory_format=torch.channels_last)
    if parameter.is_contiguous() or is_last:
        return tuple(parameter.shape), parameter.stride()
    return tuple(parameter.shape), parameter.contiguous().stride()


def _flat(tensors: Sequence[Tensor], memories: Sequence[_Memory]) -> Tensor:
    """The tensors one after another, each in the memory order that is asked for."""
    lines = []
    for tensor, (shape, strides) in zip(tensors, memories, strict=True):
        if not _has_order(tensor, shape, strides):
            tensor = torch.empty_strided(shape, strides, dtype=tensor.dtype, device=tensor.device).copy_(tensor)
        lines.append(tensor.as_strided((tensor.numel(),), (1,)))
    return torch.cat(lines)


def _has_order(tensor: Tensor, shape: Sequence[int], strides: Sequence[int]) -> bool:
    own = tensor.stride()
    return own == strides or all(a == b or n == 1 for a, b, n in zip(own, strides, shape, strict=True))


def _pieces(flat: Tensor, memories: Sequence[_Memory]) -> tuple[Tensor, ...]:
    found, start = [], 0
    for shape, strides in memories:
        found.append(flat.as_strided(shape, strides, start))
        start += found[-1].numel()
    return tuple(found)
