"""KAP models as plain convolutions: what to deploy, and what to attack with the noise off."""

import copy
import warnings

import torch
from torch import Tensor, fx, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils.fusion import fuse_conv_bn_eval

from kapdist.kap.conv import KAPConv2d
from kapdist.kap.kapify import check_permanent, conv_arguments, is_made_anew, replace_modules
from kapdist.kap.left_out import LayerTracer
from kapdist.kap.noise import layers_with_noise
from kapdist.kap.norms import PLAIN, behind


def fold(model: nn.Module, *, norms: bool = False, dense: bool = False) -> nn.Module:
    """A copy in which each KAPConv2d is a plain nn.Conv2d with averaged weights: same logits, noise off.

    All noise is off for good, that of other layers too (dropout that draws always, the member of an ensemble).
    A grouped KAPConv2d with a pool stays one, without noise, because the average mixes the groups; with `dense` it
    becomes a dense convolution: exact, but many times as large. With `norms` each nn.BatchNorm2d or
    nn.SyncBatchNorm that alone follows a convolution is folded into it as well, with its running statistics, and an
    nn.Identity stands in its place, or the activation that a norm by somebody else has behind it; the copy is then
    in eval mode. Norms that do not follow a convolution directly, are shared, keep no statistics or do more stay: a
    warning names them.

    Raises: ValueError that names each KAPConv2d whose weight is made anew in every pass (pruned, weight or spectral
    norm), and when `norms` is asked for and torch.fx cannot follow the model's forward.
    """
    for name, module in model.named_modules():
        if isinstance(module, KAPConv2d):
            check_permanent(name, module, "before it is folded")
    copied = copy.deepcopy(model)
    convs = [module for module in copied.modules() if isinstance(module, KAPConv2d)]
    new = {conv: plain_conv(conv) for conv in convs if dense or not mixes_groups(conv)}
    for layer in layers_with_noise(copied):
        layer.silence()
    folded = replace_modules(copied, new)
    return _fold_norms(folded.eval()) if norms else folded


def mixes_groups(kap: KAPConv2d) -> bool:
    return kap.groups > 1 and (kap.pool_size > 1 or kap.pool_stride > 1)


@torch.no_grad()
def plain_conv(kap: KAPConv2d) -> nn.Conv2d:
    """The nn.Conv2d that computes what a KAPConv2d computes without noise."""
    weight = _dense_weight(kap) if mixes_groups(kap) else kap.weight
    arguments = conv_arguments(kap) | {"out_channels": kap.pooled_channels}
    arguments["groups"] = 1 if mixes_groups(kap) else kap.groups
    conv = nn.Conv2d(**arguments, bias=kap.bias is not None, device="meta")
    conv.weight = _parameter(kap.average(weight, dim=0), kap.weight)
    if kap.bias is not None:
        conv.bias = _parameter(kap.average(kap.bias, dim=0), kap.bias)
    return conv.train(kap.training)


def _parameter(value: Tensor, like: Tensor) -> nn.Parameter:
    return nn.Parameter(value.detach().clone(), requires_grad=like.requires_grad)


def _dense_weight(conv: nn.Conv2d) -> Tensor:
    """The weight of the same convolution without groups: (out, in / groups, h, w) to (out, in, h, w)."""
    groups, per_group = conv.groups, conv.in_channels // conv.groups
    dense = conv.weight.new_zeros(conv.out_channels, groups, per_group, *conv.kernel_size)
    rows = torch.arange(conv.out_channels, device=dense.device)
    dense[rows, rows // (conv.out_channels // groups)] = conv.weight
    return dense.flatten(1, 2)


def _fold_norms(model: nn.Module) -> nn.Module:
    modules = dict(model.named_modules())
    for conv_name, norm_name in _conv_norm_pairs(model):
        fused = fuse_conv_bn_eval(modules[conv_name], modules[norm_name])
        rest = behind(modules[norm_name])
        left = nn.Sequential(*rest).eval() if rest else nn.Identity()
        replace_modules(model, {modules[conv_name]: fused, modules[norm_name]: left})
    norms = [(name, module) for name, module in model.named_modules() if isinstance(module, _BatchNorm)]
    if norms:
        names = ", ".join(f"{name} ({type(module).__name__})" for name, module in norms)
        warnings.warn(f"fold leaves norms as they are: {names}", stacklevel=3)
    return model


def _conv_norm_pairs(model: nn.Module) -> list[tuple[str, str]]:
    """Names of convolutions and the norms that nothing but they feed, each called exactly once."""
    tracer = LayerTracer()
    tracer.proxy_buffer_attributes = True  # else a buffer's methods meet proxies and fail
    try:
        graph = tracer.trace(model)
    except Exception as error:  # fx raises whatever the model's code raises at a proxy
        raise ValueError(
            f"cannot fold the norms: torch.fx cannot follow {type(model).__name__}: {error}"
        ) from error
    calls = [node for node in graph.nodes if node.op == "call_module"]
    modules = {node: model.get_submodule(str(node.target)) for node in calls}
    count = {module: list(modules.values()).count(module) for module in modules.values()}
    pairs = []
    for norm in calls:
        conv = norm.args[0] if norm.args else None
        if not isinstance(modules[norm], PLAIN) or not isinstance(conv, fx.Node):
            continue
        if conv not in modules or type(modules[conv]) is not nn.Conv2d or is_made_anew(modules[conv]):
            continue
        alone = len(conv.users) == 1 and count[modules[conv]] == count[modules[norm]] == 1
        if alone and modules[norm].running_mean is not None and behind(modules[norm]) is not None:
            pairs.append((str(conv.target), str(norm.target)))
    return pairs
