"""Kernel Average Pooling for any CNN."""

import warnings
from collections.abc import Callable, Mapping
from typing import Any

from torch import nn

from kapdist.kap.ahead import average_ahead
from kapdist.kap.average import check_window
from kapdist.kap.conv import KAPConv2d, check_noise_std
from kapdist.kap.left_out import linear_convolutions
from kapdist.kap.noise import share_noise_source
from kapdist.kap.norms import NoNormError, followers, fresh_copy

Where = Callable[[str, nn.Module], bool]


def kapify(
    model: nn.Module,
    *,
    pool_size: int = 3,
    layout: str = "sheet",
    noise_std: float = 0.0,
    norm_first: bool = False,
    where: Where | None = None,
) -> nn.Module:
    """Replaces the model's convolutions by KAPConv2d, in place, and returns the model.

    With norm_first a batch norm stands before each average as well: a fresh one of the kind of that which alone
    follows the convolution, under `<convolution>.inner_norm`. With pool_size 1 there is none.

    The parameters are the very same objects: an optimizer made before stays valid (inner norms are new), the
    state_dict keeps its keys. `where(name, convolution)` picks; by default every nn.Conv2d is replaced, first layer
    and shortcuts included, save linear layers by another name (on maps of one pixel, as in squeeze-and-excitation,
    or making the logits): a warning names them. Subclasses of nn.Conv2d compute something of their own and are left
    as they are, with a warning that names them; so are KAPConv2d of an earlier call, unless `where` picks them
    (ValueError: fold first).
    A model that is itself an nn.Conv2d cannot be changed in place: the KAPConv2d is returned. Hooks on a
    replaced convolution are not carried over. All noisy layers of the model share one noise source.

    Raises: ValueError that names each convolution whose channels the window does not fit, before anything
    is changed, and each whose weight is made anew in every pass (pruned, weight or spectral norm); for an
    unknown layout, an even pool_size, a negative noise_std, and a model without anything to replace. NoNormError,
    a ValueError, that names each convolution that no batch norm alone follows, where norm_first asks for one.
    """
    check_noise_std(noise_std)
    picked = _pick(model, where)
    _check(picked, pool_size, layout)
    if not picked:
        _say_nothing_replaced(model)
    norms = _inner_norms(model, picked) if norm_first and pool_size > 1 else {}
    new = {
        conv: kap_conv(conv, pool_size=pool_size, layout=layout, noise_std=noise_std, inner_norm=norms.get(conv))
        for conv in picked.values()
    }
    model = replace_modules(model, new)
    share_noise_source(model)
    if not isinstance(model, KAPConv2d):
        average_ahead(model)
    return model


def _inner_norms(model: nn.Module, picked: Mapping[str, nn.Conv2d]) -> dict[nn.Conv2d, Any]:
    found = followers(model)
    if without := [name or "the model itself" for name in picked if name not in found]:
        raise NoNormError(
            "norm_first needs a batch norm that alone follows each convolution: leave these out with `where`: "
            + ", ".join(without)
        )
    return {conv: fresh_copy(model.get_submodule(found[name]), conv) for name, conv in picked.items()}


def kap_conv(
    conv: nn.Conv2d,
    *,
    pool_size: int,
    layout: str,
    noise_std: float,
    inner_norm: nn.BatchNorm2d | nn.SyncBatchNorm | None = None,
) -> KAPConv2d:
    """A KAPConv2d with the parameters (not copies) of `conv`."""
    kap = KAPConv2d(
        **conv_arguments(conv),
        bias=conv.bias is not None,
        device="meta",  # its own parameters are never filled, and no global random number is drawn
        pool_size=pool_size,
        layout=layout,
        noise_std=noise_std,
        inner_norm=inner_norm,
    )
    kap.weight, kap.bias = conv.weight, conv.bias
    return kap.train(conv.training)


def conv_arguments(conv: nn.Conv2d) -> dict[str, Any]:
    """The constructor arguments of a convolution, bias, device and dtype apart."""
    names = (
        "in_channels",
        "out_channels",
        "kernel_size",
        "stride",
        "padding",
        "dilation",
        "groups",
        "padding_mode",
    )
    return {name: conv.__dict__[name] for name in names}


def replace_modules(model: nn.Module, new: Mapping[Any, nn.Module]) -> nn.Module:
    """Puts new[module] wherever a module of `new` stands, under each of its names.

    Also in lists, tuples and dictionaries that its modules hold beside: a forward that goes through such a list
    would call what has been replaced.
    """
    if model in new:
        return new[model]
    known: set[int] = set()
    for parent in list(model.modules()):
        for name, child in list(parent._modules.items()):  # named_children() would skip a second name of a child
            if child in new:
                parent._modules[name] = new[child]
        for name, value in list(vars(parent).items()):
            parent.__dict__[name] = _with_replaced(value, new, known)
    return model


def _with_replaced(value: Any, new: Mapping[Any, nn.Module], known: set[int]) -> Any:
    """A value that a module holds, with new[module] for each module of `new` in it; lists and dicts are changed."""
    if isinstance(value, nn.Module):
        return new.get(value, value)
    if type(value) not in (list, tuple, dict) or id(value) in known:
        return value
    if isinstance(value, tuple):
        parts = [_with_replaced(part, new, known) for part in value]
        return value if all(a is b for a, b in zip(parts, value, strict=True)) else tuple(parts)
    known.add(id(value))
    for place in list(value) if isinstance(value, dict) else range(len(value)):
        value[place] = _with_replaced(value[place], new, known)
    return value


def _pick(model: nn.Module, where: Where | None) -> dict[str, nn.Conv2d]:
    picked: dict[str, nn.Conv2d] = {}
    left = []
    linear = _linear_convolutions(model) if where is None else {}
    for name, module in model.named_modules():
        if not isinstance(module, nn.Conv2d) or (where is not None and not where(name, module)):
            continue
        if module in linear:
            continue
        check_permanent(name, module, "first, or leave it out with `where`")
        if type(module) is nn.Conv2d:
            picked[name] = module
        elif not isinstance(module, KAPConv2d):
            left.append(f"{name} ({type(module).__name__})")
        elif where is not None:
            raise ValueError(f"{name} is a KAPConv2d already: fold the model first, or leave it out with `where`")
    if left:
        warnings.warn(f"kapify leaves subclasses of nn.Conv2d as they are: {', '.join(left)}", stacklevel=3)
    return picked


def check_permanent(name: str, conv: nn.Module, advice: str) -> None:
    """Raises: ValueError that names a convolution whose weight or bias is made anew in every pass."""
    if is_made_anew(conv):
        raise ValueError(
            f"{name or 'the model itself'}: its weight is made anew in every pass (pruning, weight norm, "
            f"spectral norm, a parametrization): make that permanent {advice}"
        )


def is_made_anew(conv: nn.Module) -> bool:
    """Whether weight or bias is no parameter, but computed from others by a hook or a parametrization."""
    return "weight" not in conv._parameters or ("bias" not in conv._parameters and conv.bias is not None)


def _linear_convolutions(model: nn.Module) -> dict[nn.Module, str]:
    if not any(isinstance(module, nn.Conv2d) for module in model.modules()) or isinstance(model, nn.Conv2d):
        return {}
    try:
        linear = linear_convolutions(model)
    except ValueError as error:
        warnings.warn(
            f"kapify averages gates and convolutions that make logits, if there are any: {error}", stacklevel=4
        )
        return {}
    names = [f"{name} ({linear[module]})" for name, module in model.named_modules() if module in linear]
    if names:
        warnings.warn(f"kapify leaves out, unless `where` picks them: {', '.join(names)}", stacklevel=4)
    return linear


def _say_nothing_replaced(model: nn.Module) -> None:
    if not any(isinstance(module, KAPConv2d) for module in model.modules()):
        raise ValueError(f"kapify found no convolution to replace in {type(model).__name__}")
    warnings.warn("kapify replaced nothing: the model has its averages already", stacklevel=3)


def _check(picked: dict[str, nn.Conv2d], pool_size: int, layout: str) -> None:
    check_window(10**6, pool_size, 1, layout)  # what is wrong whatever the channels: said without any names
    refused = []
    for name, conv in picked.items():
        try:
            check_window(conv.out_channels, pool_size, 1, layout)
        except ValueError as error:
            refused.append(f"{name or 'the model itself'}: {error}")
    if refused:
        raise ValueError("leave these convolutions out with `where`: " + "; ".join(refused))
