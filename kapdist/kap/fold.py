"""KAP models as plain convolutions: what to deploy, and what to attack with the noise off."""

import copy
import warnings

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils.fusion import fuse_conv_bn_eval

from kapdist.kap.ahead import no_longer_ahead
from kapdist.kap.conv import KAPConv2d
from kapdist.kap.kapify import check_permanent, conv_arguments, is_made_anew, replace_modules
from kapdist.kap.noise import layers_with_noise
from kapdist.kap.norms import behind, followers


def fold(model: nn.Module, *, norms: bool = False, dense: bool = False) -> nn.Module:
    """A copy in which each KAPConv2d is a plain nn.Conv2d with averaged weights: same logits, noise off.

    All noise is off for good, that of other layers too (dropout that draws always, the member of an ensemble).
    A grouped KAPConv2d with a pool stays one, without noise, because the average mixes the groups; with `dense` it
    becomes a dense convolution: exact, but many times as large. An inner norm goes in first, with its running
    statistics; one that keeps none stays, with its convolution and average: a warning names it.

    With `norms` each nn.BatchNorm2d or nn.SyncBatchNorm that alone follows a convolution is folded into it as well,
    with its running statistics, and an nn.Identity stands in its place, or the activation that a norm by somebody
    else has behind it; the copy is then in eval mode. Norms that do not follow a convolution directly, are shared,
    keep no statistics or do more stay: a warning names them.

    Raises: ValueError that names each KAPConv2d whose weight is made anew in every pass (pruned, weight or spectral
    norm) or whose inner norm is in training mode, where the batch decides (`norms` puts the copy in eval mode), and
    when `norms` is asked for and torch.fx cannot follow the model's forward.
    """
    for name, module in model.named_modules():
        if isinstance(module, KAPConv2d):
            check_permanent(name, module, "before it is folded")
    copied = copy.deepcopy(model)
    if norms:
        copied.eval()
    no_longer_ahead(copied)
    for layer in layers_with_noise(copied):
        layer.silence()
    frozen = []
    for name, module in copied.named_modules():
        if isinstance(module, KAPConv2d):
            check_frozen(name, module)
            frozen += [module] if module.is_frozen else []
    folded = replace_modules(copied, {conv: plain_conv(conv) for conv in frozen if dense or not mixes_groups(conv)})
    for conv in frozen:
        take_norm_in(conv)
    return _fold_norms(folded) if norms else folded


@torch.no_grad()
def with_the_keys_of(network: nn.Module, folded: nn.Module) -> nn.Module:
    """The folded model, changed in place, with the keys of the network that was given to kapify.

    An inner norm that is folded gives its convolution a bias. Where the network has none there, the norm behind it
    takes the bias into its running mean, which it subtracts from the same channels: logits stay as they were.

    Raises: ValueError where torch.fx cannot follow the model's forward.
    """
    plain, modules = dict(network.named_modules()), dict(folded.named_modules())
    for conv_name, norm_name in followers(folded).items():
        conv, norm = modules[conv_name], modules[norm_name]
        if conv.bias is not None and plain[conv_name].bias is None and norm.running_mean is not None:
            norm.running_mean -= conv.bias
            conv.bias = None
    return folded


def check_frozen(name: str, conv: KAPConv2d) -> None:
    """Warns of an inner norm that has to stay.

    Raises: ValueError that names a convolution whose inner norm is in training mode.
    """
    norm = conv.inner_norm
    if norm is not None and norm.training:
        raise ValueError(f"{name or 'the model itself'}: its inner norm is in training mode: call .eval() first")
    if norm is not None and not conv.is_frozen:
        warnings.warn(f"fold leaves {name} as it is: its inner norm keeps no statistics", stacklevel=3)


@torch.no_grad()
def take_norm_in(kap: KAPConv2d) -> None:
    """Have a KAPConv2d that stays one compute the same with its inner norm in its parameters."""
    if kap.inner_norm is None:
        return
    weight, bias = kap.normed_parameters()
    kap.weight = _parameter(weight, kap.weight)
    kap.bias = None if bias is None else _parameter(bias, kap.weight)
    kap.inner_norm = None


def mixes_groups(kap: KAPConv2d) -> bool:
    return kap.groups > 1 and (kap.pool_size > 1 or kap.pool_stride > 1)


@torch.no_grad()
def plain_conv(kap: KAPConv2d) -> nn.Conv2d:
    """The nn.Conv2d that computes what a KAPConv2d computes without noise, its inner norm frozen."""
    weight, bias = kap.normed_parameters()
    weight = _dense_weight(kap, weight) if mixes_groups(kap) else weight
    arguments = conv_arguments(kap) | {"out_channels": kap.pooled_channels}
    arguments["groups"] = 1 if mixes_groups(kap) else kap.groups
    conv = nn.Conv2d(**arguments, bias=bias is not None, device="meta")
    conv.weight = _parameter(kap.average(weight, dim=0), kap.weight)
    if bias is not None:
        conv.bias = _parameter(kap.average(bias, dim=0), kap.weight if kap.bias is None else kap.bias)
    return conv.train(kap.training)


def _parameter(value: Tensor, like: Tensor) -> nn.Parameter:
    return nn.Parameter(value.detach().clone(), requires_grad=like.requires_grad)


def _dense_weight(conv: nn.Conv2d, weight: Tensor) -> Tensor:
    """The weight of the same convolution without groups: (out, in / groups, h, w) to (out, in, h, w)."""
    groups, per_group = conv.groups, conv.in_channels // conv.groups
    dense = weight.new_zeros(conv.out_channels, groups, per_group, *conv.kernel_size)
    rows = torch.arange(conv.out_channels, device=dense.device)
    dense[rows, rows // (conv.out_channels // groups)] = weight
    return dense.flatten(1, 2)


def _fold_norms(model: nn.Module) -> nn.Module:
    modules = dict(model.named_modules())
    for conv_name, norm_name in _foldable(model):
        fused = fuse_conv_bn_eval(modules[conv_name], modules[norm_name])
        rest = behind(modules[norm_name])
        left = (nn.Sequential(*rest) if rest else nn.Identity()).eval()
        replace_modules(model, {modules[conv_name]: fused, modules[norm_name]: left})
    norms = [(name, module) for name, module in model.named_modules() if isinstance(module, _BatchNorm)]
    if norms:
        names = ", ".join(f"{name} ({type(module).__name__})" for name, module in norms)
        warnings.warn(f"fold leaves norms as they are: {names}", stacklevel=3)
    return model


def _foldable(model: nn.Module) -> list[tuple[str, str]]:
    """Names of convolutions and norms such that the norm's arithmetic may go into the convolution."""
    try:
        pairs = followers(model)
    except ValueError as error:
        raise ValueError(f"cannot fold the norms: {error}") from error
    modules = dict(model.named_modules())
    found = []
    for conv, norm in pairs.items():
        plain = type(modules[conv]) is nn.Conv2d and not is_made_anew(modules[conv])
        if plain and modules[norm].running_mean is not None and behind(modules[norm]) is not None:
            found.append((conv, norm))
    return found
