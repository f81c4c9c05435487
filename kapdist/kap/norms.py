"""Norms behind convolutions: which alone follows which, and what one does behind its arithmetic."""

import copy
from typing import Any

from torch import fx, nn
from torch.nn import functional

from kapdist.kap.left_out import traced

PLAIN = (nn.BatchNorm2d, nn.SyncBatchNorm)
CHECKS = "_check_input_dim", "_check_non_zero_input_channels"  # of torch's norms: they branch on the input's shape
SETTINGS = "eps", "momentum", "affine", "track_running_stats"
TENSORS = "running_mean", "running_var", "weight", "bias"


class NoNormError(ValueError):
    """A convolution that is to be normalised before its average has no batch norm behind it."""


def followers(model: nn.Module) -> dict[str, str]:
    """Names of convolutions, to those of the batch norms that they alone feed and that alone they feed, each once.

    Raises: ValueError where torch.fx cannot follow the model's forward.
    """
    _, modules = traced(model)
    calls = list(modules.values())
    found = {}
    for node, norm in modules.items():
        source = node.args[0] if node.args else None
        if not isinstance(norm, PLAIN) or not isinstance(source, fx.Node):
            continue
        conv = modules.get(source)
        if isinstance(conv, nn.Conv2d) and len(source.users) == calls.count(conv) == calls.count(norm) == 1:
            found[str(source.target)] = str(node.target)
    return found


def fresh_copy(norm: nn.Module, conv: nn.Conv2d) -> nn.BatchNorm2d | nn.SyncBatchNorm:
    """A norm of the kind and settings of `norm` for the channels of `conv`, at identity statistics.

    Of a norm that does more than normalise (`behind`) it is the norm alone.
    """
    assert isinstance(norm, PLAIN)
    settings: dict[str, Any] = {name: getattr(norm, name) for name in SETTINGS}
    settings |= {"device": conv.weight.device, "dtype": conv.weight.dtype}
    if isinstance(norm, nn.SyncBatchNorm):
        synced = nn.SyncBatchNorm(conv.out_channels, process_group=norm.process_group, **settings)
        return synced.train(norm.training)
    return nn.BatchNorm2d(conv.out_channels, **settings).train(norm.training)


def behind(norm: nn.Module) -> list[nn.Module] | None:
    """The modules that a norm calls on what nn.BatchNorm2d would give, in order; None where it does anything else.

    A norm of one of torch's types calls none. A subclass, such as timm's BatchNormAct2d (norm, dropout, activation
    in one), is read by torch.fx in eval mode: what it gives must come from the input by one batch norm with its own
    running statistics, weight, bias and eps, and by modules after that.
    """
    if type(norm) in PLAIN:
        return []
    if not isinstance(norm, PLAIN) or norm.training:
        return None
    unchecked = copy.copy(norm)
    for check in CHECKS:
        unchecked.__dict__[check] = lambda *_: None
    try:
        node: Any = next(node for node in fx.Tracer().trace(unchecked).nodes if node.op == "output").args[0]
    except Exception:  # fx raises whatever the norm's code raises at a proxy
        return None
    modules: list[nn.Module] = []
    while isinstance(node, fx.Node) and node.op == "call_module" and len(node.args) == 1 and not node.kwargs:
        modules.insert(0, norm.get_submodule(str(node.target)))
        node = node.args[0]
    return modules if _is_own_norm(node, norm) else None


def _is_own_norm(node: Any, norm: nn.Module) -> bool:
    """Whether a node is the norm's own arithmetic on the input, as torch does it in eval mode."""
    if not isinstance(node, fx.Node) or node.target is not functional.batch_norm:
        return False
    names = "input", *TENSORS, "training", "momentum", "eps"
    given = dict(zip(names, node.args, strict=False)) | node.kwargs
    own = [None if getattr(norm, name) is None else name for name in TENSORS]
    taken = [value.target if isinstance(value, fx.Node) else value for value in map(given.get, TENSORS)]
    source = given["input"]
    from_input = isinstance(source, fx.Node) and source.op == "placeholder"
    return from_input and taken == own and given.get("training") is False and given.get("eps") == norm.eps
