"""Convolutions that a kernel average does not belong behind: linear layers by another name."""

from typing import Any

from torch import fx, nn

from kapdist.kap.noise import NoisyLayer

GLOBAL_POOLS = (nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d)
REDUCTIONS = ("mean", "amax", "sum")
FLATTENINGS = ("flatten", "view", "reshape", "squeeze", "mean", "amax", "sum")


class LayerTracer(fx.Tracer):
    """Looks into no convolution, no norm and nothing that draws, whoever wrote it."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        layer = isinstance(m, nn.Conv2d | nn.BatchNorm2d | nn.SyncBatchNorm | NoisyLayer)
        return layer or super().is_leaf_module(m, module_qualified_name)


def traced(model: nn.Module) -> tuple[fx.Graph, dict[fx.Node, nn.Module]]:
    """The model's graph in layers, and the module of each call.

    Raises: ValueError where torch.fx cannot follow the model's forward.
    """
    tracer = LayerTracer()
    tracer.proxy_buffer_attributes = True  # else a buffer's methods meet proxies and fail
    try:
        graph = tracer.trace(model)
    except Exception as error:  # fx raises whatever the model's code raises at a proxy
        raise ValueError(f"torch.fx cannot follow {type(model).__name__}: {error}") from error
    return graph, {node: model.get_submodule(str(node.target)) for node in graph.nodes if node.op == "call_module"}


def linear_convolutions(model: nn.Module) -> dict[nn.Module, str]:
    """The model's convolutions on maps of one pixel (gates, heads), and those whose outputs become the logits.

    As torch.fx sees the model: nothing that depends on the input's size is found. A last convolution counts
    where pooling, flattening and functions without parameters alone lead from it to the model's output.

    Raises: ValueError where torch.fx cannot follow the model's forward.
    """
    graph, modules = traced(model)
    found: dict[nn.Module, str] = {}
    pooled: set[fx.Node] = set()
    for node in graph.nodes:
        inputs = node.all_input_nodes
        if is_global_pool(node, modules) or (inputs and all(source in pooled for source in inputs)):
            pooled.add(node)
            if inputs and inputs[0] in pooled and isinstance(modules.get(node), nn.Conv2d):
                found[modules[node]] = "on maps of one pixel"
    for conv in last_convolutions(graph, modules):
        found.setdefault(conv, "makes the logits")
    return found


def is_global_pool(node: fx.Node, modules: dict[fx.Node, nn.Module]) -> bool:
    if node.op == "call_module":
        pool = modules[node]
        return isinstance(pool, GLOBAL_POOLS) and pool.output_size in (1, (1, 1))
    if name_of(node) in ("adaptive_avg_pool2d", "adaptive_max_pool2d"):
        size = argument(node, 1, "output_size")
        return size == 1 or tuple(size if isinstance(size, tuple | list) else ()) == (1, 1)
    if name_of(node) in REDUCTIONS:
        dims = argument(node, 1, "dim")
        return isinstance(dims, tuple | list) and {dim % 4 for dim in dims} == {2, 3}
    return False


def last_convolutions(graph: fx.Graph, modules: dict[fx.Node, nn.Module]) -> list[nn.Module]:
    output = next(node for node in graph.nodes if node.op == "output")
    found: list[nn.Module] = []
    seen, stack = set(), [(output, False)]
    while stack:
        node, collapsed = stack.pop()
        if (node, collapsed) in seen:
            continue
        seen.add((node, collapsed))
        module = modules.get(node)
        if isinstance(module, nn.Conv2d) and collapsed:
            found.append(module)
        if module is not None and any(True for _ in module.parameters()):
            continue
        collapses = isinstance(module, nn.Flatten) or name_of(node) in FLATTENINGS or is_global_pool(node, modules)
        stack += [(source, collapsed or collapses) for source in node.all_input_nodes]
    return found


def name_of(node: fx.Node) -> str:
    if node.op == "call_method":
        return str(node.target)
    return getattr(node.target, "__name__", "") if node.op == "call_function" else ""


def argument(node: fx.Node, place: int, name: str) -> Any:
    return node.args[place] if len(node.args) > place else node.kwargs.get(name)
