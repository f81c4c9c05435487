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
from kapdist.kap.rows import Rows, average_rows, rows_of, tables

_Memory = tuple[tuple[int, ...], tuple[int, ...]]  # shape and strides
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
        parameters = lot.parameters()
        if _local.found.keys().isdisjoint(lot.layers) and lot.can_be_made(parameters):
            _local.found.update(lot.make(parameters))
            made += lot.layers
    _local.made_by[model] = made


def _averaging(model: nn.Module) -> list[Any]:
    """The layers whose own weights are averaged, whatever the pass: neither grouped nor normalised before."""
    layers = [module for module in model.modules() if getattr(module, "averages_its_weight", False)]
    return [
        layer for layer in layers if layer._parameters.get("weight") is not None
    ]  # else made anew in every pass


def _divided(layers: Sequence[Any]) -> Iterator[list[Any]]:
    lot: list[Any] = []
    for layer in layers:
        if lot and sum(each._parameters["weight"].numel() for each in (*lot, layer)) > _MOST_ENTRIES:
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
    """Layers that are averaged in one launch, and what of them need not be looked up in every pass."""

    def __init__(self, layers: Sequence[Any]) -> None:
        self.layers = list(layers)
        self.has_bias = [layer._parameters.get("bias") is not None for layer in layers]
        self.rows = [rows for layer in layers for rows in _rows(layer)]
        self.before, self.after = sum(rows.before for rows in self.rows), sum(rows.after for rows in self.rows)
        self._tables: dict[torch.device, tuple[Tensor, Tensor]] = {}
        self._checked: tuple[int, ...] = ()
        self._staged: dict[Any, tuple[Tensor, list[Tensor]]] = {}
        self.memories: list[_Memory] = []

    def parameters(self) -> list[Tensor]:
        """Weights and biases in order; none where one is no parameter, but made anew in every pass."""
        own = [layer._parameters.get(name) for layer in self.layers for name in ("weight", "bias")]
        found = [each for each in own if each is not None]
        return found if len(found) == len(self.rows) else []

    def can_be_made(self, parameters: Sequence[Tensor]) -> bool:
        """Whether all are of one kind, on a device where it pays, and of the sizes they had."""
        if not parameters or not _worthwhile(parameters[0].device):
            return False
        try:
            places = tuple([each.data_ptr() for each in parameters])
        except RuntimeError:  # torch.func's tensors have none
            return False
        if places == self._checked:
            return True
        first = parameters[0]
        alike = all(each.device == first.device and each.dtype == first.dtype for each in parameters)
        sizes = [each.numel() for each in parameters] == [rows.before for rows in self.rows]
        if not (alike and sizes) or any(each.is_inference() for each in parameters):
            return False
        self._checked, self._staged = places, {}
        self.memories = [_memory(each) for each in parameters]
        return True

    def make(self, parameters: Sequence[Tensor]) -> Iterator[tuple[nn.Module, Averages]]:
        averaged = iter(_Averages.apply(self, _precision(parameters[0]), *parameters))
        sources, with_gradient = iter(parameters), torch.is_grad_enabled()
        for layer, has_bias in zip(self.layers, self.has_bias, strict=True):
            weight, source = next(averaged), next(sources)
            bias = next(averaged) if has_bias and next(sources) is not None else None
            yield layer, Averages(weight, bias, source, source._version, with_gradient)

    def averaged(self, flat: Tensor, transposed: bool, dtype: torch.dtype) -> Tensor:
        if flat.device not in self._tables:
            self._tables[flat.device] = tables(self.rows, flat.device)
        numel = self.before if transposed else self.after
        arguments = (flat, *self._tables[flat.device], transposed, numel, dtype)
        if not torch.is_grad_enabled():
            return average_rows(*arguments)  # an operator's way through the dispatcher costs time
        found: Tensor = torch.ops.kapdist.average_rows(*arguments)
        return found

    def gathered(self, tensors: Sequence[Tensor], memories: Sequence[_Memory], transposed: bool) -> Tensor:
        """The tensors one after another, in kernels' order: by one operation for all, into memory that is kept.

        It is free again when the launch after it has read it, on the same stream. (Of gradients whose own gradient
        is wanted a copy is made that torch can follow.)
        """
        if torch.is_grad_enabled():
            return _flat(tensors, memories)
        first, strides = tensors[0], tuple([each.stride() for each in tensors])
        stream = torch.cuda.current_stream(first.device).cuda_stream if first.is_cuda else 0
        key = (transposed, first.dtype, stream, strides)
        if key not in self._staged:
            self._staged = {other: kept for other, kept in self._staged.items() if other[0] != transposed}
            self._staged[key] = _staged(tensors, memories)
        flat, pieces = self._staged[key]
        torch._foreach_copy_(pieces, list(tensors))
        return flat


def _staged(tensors: Sequence[Tensor], memories: Sequence[_Memory]) -> tuple[Tensor, list[Tensor]]:
    """A flat tensor and its pieces, with the tensors' own strides where they come to the same."""
    with torch.inference_mode(False), torch.no_grad():
        flat = torch.empty(sum(each.numel() for each in tensors), dtype=tensors[0].dtype, device=tensors[0].device)
        own = [
            (shape, tensor.stride() if _has_order(tensor, shape, strides) else strides)
            for tensor, (shape, strides) in zip(tensors, memories, strict=True)
        ]
        return flat, list(_pieces(flat, own))


def _rows(layer: Any) -> list[Rows]:
    grid = check_window(layer.out_channels, layer.pool_size, layer.pool_stride, layer.layout)
    own = [layer._parameters.get(name) for name in ("weight", "bias")]  # under torch.fx attributes are no tensors
    rests = [each.numel() // len(each) for each in own if each is not None]
    return [rows_of(grid, rest, layer.pool_size, layer.pool_stride) for rest in rests]


class _Averages(torch.autograd.Function):
    """The lot's parameters to their averages, as pieces of one tensor; no gradient where none comes back."""

    @staticmethod
    def forward(ctx: Any, lot: Lot, dtype: torch.dtype, *parameters: Tensor) -> tuple[Tensor, ...]:
        ctx.set_materialize_grads(False)
        ctx.lot, ctx.source, ctx.before = lot, parameters[0].dtype, lot.memories
        ctx.after = [
            ((rows.after // rows.rest, *shape[1:]), strides)
            for (shape, strides), rows in zip(lot.memories, lot.rows, strict=True)
        ]
        return _pieces(lot.averaged(lot.gathered(parameters, ctx.before, False), False, dtype), ctx.after)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        lot, given = ctx.lot, next(grad for grad in grads if grad is not None)
        whole = [
            given.new_zeros(shape) if grad is None else grad
            for grad, (shape, _) in zip(grads, ctx.after, strict=True)
        ]
        found = _pieces(lot.averaged(lot.gathered(whole, ctx.after, True), True, ctx.source), ctx.before)
        kept = zip(found, ctx.needs_input_grad[2:], grads, strict=True)
        return None, None, *(piece if need and grad is not None else None for piece, need, grad in kept)


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
