"""A network's passes without a gradient on a CPU: convolutions in oneDNN's own order, additions in their loop.

Weights lie as oneDNN reads them, and a shortcut is added while the sums are in registers. All is rounded as it was,
or a convolution stays as it was, or the network: the logits are the same, bit by bit, which is tried before a form
is used. (Cutting off below zero there as well would make 0 of what is not a number.)
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, fx, nn

from kapdist.kap.left_out import traced
from kapdist.kap.normed import HOOKS

ADDITIONS = operator.add, torch.add
NOTHING = nn.Identity, nn.Dropout  # in evaluation mode
FEWEST = 2  # rows: a single one is passed otherwise by torch, with other sums
# Rows of a batch; where they are few, torch adds up channels in another order.
TRIED = (slice(None), slice(FEWEST))

State = tuple[tuple[int, int], ...]
"""Where each parameter lies, and how often it was written to."""
_FORMS: WeakKeyDictionary[nn.Module, tuple[State, Fused]] = WeakKeyDictionary()


def fused(network: nn.Module) -> Fused:
    """Return a network's fused form, one for all who ask, until its weights change.

    Not beside other threads that run modules: while torch.fx reads one, it changes what a call of any of them does.

    Args:
        network: frozen, in evaluation mode, on a CPU, of kapdist's own layers alone, without randomness.
    """
    state = tuple(map(version_of, network.parameters()))
    known = _FORMS.get(network)
    if known is None or known[0] != state:
        known = _FORMS[network] = state, Fused(fused_form(network))
    return known[1]


def version_of(parameter: Tensor) -> tuple[int, int]:
    return parameter.data_ptr(), 0 if parameter.is_inference() else parameter._version


class Fused:
    """What a network computes, of the network and its images.

    Args:
        form: of the network; None where there is none.
    """

    def __init__(self, form: nn.Module | None) -> None:
        self.form, self.tried = form, False

    def __call__(self, network: nn.Module, images: Tensor) -> Tensor:
        fits = images.dtype == torch.float32 and len(images) >= FEWEST
        form = self.tried_form(network, images) if fits else None
        logits: Tensor = (network if form is None else form)(images)
        return logits

    def tried_form(self, network: nn.Module, images: Tensor) -> nn.Module | None:
        """Return the form, if it has the network's logits of drawn numbers that lie in memory as the images do."""
        if self.form is not None and not self.tried:
            drawn = torch.empty_like(images).uniform_(generator=torch.Generator().manual_seed(0))
            self.form, self.tried = self.form if is_same(self.form, network, drawn) else None, True
        return self.form


def is_same(one: Callable[..., Tensor], other: Callable[..., Tensor], *given: Tensor) -> bool:
    """Return whether two give the same bits of the same tensors, (rows, ...): of all their rows, and of few."""
    try:
        parts = [[tensor[rows] for tensor in given] for rows in TRIED]
        return all(torch.equal(one(*part), other(*part)) for part in parts)
    except Exception:  # what oneDNN does not take, or a graph has wrong: whatever it is, it is not used
        return False


def fused_form(network: nn.Module) -> nn.Module | None:
    if not torch.backends.mkldnn.is_available():
        return None
    try:
        graph, modules = traced(network)
    except ValueError:
        return None
    convolutions = {node: module for node, module in modules.items() if isinstance(module, nn.Conv2d)}
    if not convolutions or not all(map(is_plain, convolutions.values())) or has_hooks(network):
        return None
    form = fx.GraphModule(network, graph)
    for number, (node, conv) in enumerate(convolutions.items()):
        fuse(form, node, conv, f"fused_{number}")
    form.graph.eliminate_dead_code()
    form.recompile()
    return form


def is_plain(conv: nn.Conv2d) -> bool:
    plain = type(conv) is nn.Conv2d and conv.padding_mode == "zeros" and not isinstance(conv.padding, str)
    return plain and conv.weight.dtype == torch.float32


def has_hooks(network: nn.Module) -> bool:
    return any(getattr(module, hooks) for module in network.modules() for hooks in HOOKS)


def fuse(form: fx.GraphModule, node: fx.Node, conv: nn.Conv2d, name: str) -> None:
    """Let one module do a convolution and the addition that alone follows it, if one does."""
    last, inputs = node, node.args
    addition = sole_user(form, node)
    if addition is not None and (shortcut := other_term(form, addition, node)) is not None:
        last, inputs = addition, (*inputs, shortcut)
    form.add_submodule(name, Convolution(conv))
    with form.graph.inserting_before(last):
        whole = form.graph.call_module(name, inputs)
    last.replace_all_uses_with(whole)


def sole_user(form: fx.GraphModule, node: fx.Node) -> fx.Node | None:
    """Return who alone uses what a node computes, behind modules that do nothing."""
    while len(node.users) == 1:
        (node,) = node.users
        if not does_nothing(form, node):
            return node
    return None


def other_term(form: fx.GraphModule, addition: fx.Node, node: fx.Node) -> fx.Node | None:
    """Return what a sum adds to what a node computes; None where it is no sum of two tensors."""
    if addition.target not in ADDITIONS or addition.kwargs:
        return None
    terms = [term for term in addition.args if isinstance(term, fx.Node)]
    others = [term for term in terms if before(form, term) is not node]
    return others[0] if len(others) == 1 < len(terms) else None


def before(form: fx.GraphModule, node: fx.Node) -> fx.Node:
    """Return who computes what a node has, before modules that do nothing."""
    while does_nothing(form, node):
        (node,) = node.all_input_nodes
    return node


def does_nothing(form: fx.GraphModule, node: fx.Node) -> bool:
    return node.op == "call_module" and type(form.get_submodule(str(node.target))) in NOTHING


class Convolution(nn.Module):
    """A convolution, plus a shortcut where it is given one: in one, if that gives what the two give one by one.

    It is tried at the first pass, of drawn numbers, on its batch and on some rows of it.
    """

    def __init__(self, conv: nn.Conv2d) -> None:
        super().__init__()
        self.conv = conv
        self.packed: Tensor | None = None
        """The weights as oneDNN reads them for batches of the size of the first."""
        self.fits: bool | None = None

    def forward(self, *given: Tensor) -> Tensor:
        if self.fits is None:
            self.fits = is_same(self.in_one, self.one_by_one, *given)
        return self.in_one(*given) if self.fits else self.one_by_one(*given)

    def one_by_one(self, images: Tensor, shortcut: Tensor | None = None) -> Tensor:
        sums: Tensor = self.conv(images)
        return sums if shortcut is None else sums + shortcut

    def in_one(self, images: Tensor, shortcut: Tensor | None = None) -> Tensor:
        conv, operators = self.conv, torch.ops.mkldnn._convolution_pointwise
        geometry: tuple[Any, ...] = conv.padding, conv.stride, conv.dilation, conv.groups
        if self.packed is None:
            reorder: Any = torch._C._nn.mkldnn_reorder_conv2d_weight  # torch's stubs lack its last argument
            self.packed = reorder(conv.weight.to_mkldnn(), *geometry, list(images.shape))
        how = self.packed, conv.bias, *geometry
        if shortcut is None:
            sums: Tensor = operators.default(images, *how, "none", [], "")
        else:
            sums = operators.binary(images, shortcut, *how, "add", 1.0, None, [], None)
        return sums
