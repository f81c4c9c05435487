"""A straight-through backward for what hides its gradient in a model, found by looking and set up by module hooks.

Backward pass differentiable approximation (BPDA): Athalye et al. 2018, https://arxiv.org/abs/1802.00420, section
4.1, with the identity for an approximation (Bengio et al. 2013, https://arxiv.org/abs/1308.3432). Three things hide
a gradient, and each is passed by: a layer without a derivative; what is done to the image before an inner module
sees it (the entry); what is done to the logits that an inner module gave (the exit). Forward stays as it is.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

DEAD = 0.9  # share of zeros in the product of a random vector and the layer's Jacobian; half of a ReLU's are
MOST_CUTS = 4


@dataclass(frozen=True)
class Cut:
    """What is passed by: layers, by name; everything before `entry` sees the image; everything after `exit`."""

    dead: tuple[str, ...] = ()
    entry: str | None = None
    exit: tuple[str, int] | None = None
    """A module and the number of its call, from 0."""

    def __str__(self) -> str:
        parts = [f"identity for {', '.join(self.dead)}" if self.dead else ""]
        parts += [
            f"identity up to {self.entry}" if self.entry else "",
            f"logits of {self.exit[0]}" if self.exit else "",
        ]
        return ", ".join(filter(None, parts))


@dataclass
class Trace:
    """What the modules of a model were given and gave, in the order of their calls."""

    entries: dict[str, Tensor] = field(default_factory=dict)
    """First input of a module that has the shape of the images."""
    exits: dict[tuple[str, int], Tensor] = field(default_factory=dict)
    """Output of a module's call that has the shape of the logits."""
    dead: list[str] = field(default_factory=list)


class StraightThrough(nn.Module):
    """A model whose backward pass goes straight through a cut; with an exit its logits are those at the exit."""

    def __init__(self, model: nn.Module, cut: Cut) -> None:
        super().__init__()
        self.model, self.cut = model, cut

    def forward(self, images: Tensor) -> Tensor:
        answer: list[Tensor] = []

        def before(name: str, value: Tensor) -> Tensor:
            if name == self.cut.entry and value.shape == images.shape:
                return passed(value, images)
            return value

        def after(name: str, call: int, value: Tensor, output: Any) -> Any:
            if (name, call) == self.cut.exit:
                answer.append(output)
            dead = name in self.cut.dead and isinstance(output, Tensor) and output.shape == value.shape
            return passed(output, value) if dead else output

        with hooked(self.model, before, after, lambda name: name in self.cut.dead):
            logits = self.model(images)
        return answer[0] if answer else logits


def passed(value: Tensor, source: Tensor) -> Tensor:
    """Return the value with the gradient of the identity towards its source."""
    return value.detach() + (source - source.detach()).to(value.dtype)


@contextlib.contextmanager
def hooked(
    model: nn.Module,
    before: Callable[[str, Tensor], Tensor],
    after: Callable[[str, int, Tensor, Any], Any],
    on_a_copy: Callable[[str], bool],
) -> Iterator[None]:
    """Look at, and change, the first input and the output of every inner module; a no_grad inside is undone.

    Args:
        on_a_copy: which modules are given one, so that what works in place leaves its input as it was.
    """
    calls: dict[str, int] = {}
    inputs: dict[str, list[Tensor | None]] = {}
    enabled = torch.is_grad_enabled()
    modes: list[bool] = []

    def enter(name: str, words: tuple[Any, ...]) -> tuple[Any, ...] | None:
        modes.append(torch.is_grad_enabled())
        torch.set_grad_enabled(enabled)
        first = words[0] if words and isinstance(words[0], Tensor) and words[0].is_floating_point() else None
        changed = before(name, first) if first is not None else None
        inputs.setdefault(name, []).append(changed)
        given = changed.clone() if changed is not None and on_a_copy(name) else changed
        return None if first is None else (given, *words[1:])

    def leave(name: str, output: Any) -> Any:
        call = calls[name] = calls.get(name, -1) + 1
        value = inputs[name].pop()
        result = after(name, call, value, output) if value is not None else output
        torch.set_grad_enabled(modes.pop())
        return result

    hooks = []
    for name, module in model.named_modules():
        if name:
            hooks.append(module.register_forward_pre_hook(lambda _, words, name=name: enter(name, words)))
            hooks.append(module.register_forward_hook(lambda _, words, output, name=name: leave(name, output)))
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
        torch.set_grad_enabled(enabled)


def trace(model: nn.Module, images: Tensor, shape: torch.Size) -> Trace:
    """Return what the inner modules of a model do with images (batch, 3, height, width); `shape`: of logits."""
    seen = Trace()

    def before(name: str, value: Tensor) -> Tensor:
        if value.shape == images.shape:
            seen.entries.setdefault(name, value.detach().clone())
        return value if value.requires_grad else value.detach().requires_grad_().clone()

    def after(name: str, call: int, value: Tensor, output: Any) -> Any:
        if isinstance(output, Tensor) and output.shape == shape:
            seen.exits[name, call] = output.detach().clone()
        is_map = isinstance(output, Tensor) and output.is_floating_point() and output.shape == value.shape
        # Of modules in each other, the innermost is the one; it comes first.
        within = any(inner.startswith(f"{name}.") for inner in seen.dead)
        if is_map and not within and name not in seen.dead and is_dead(value, output):
            seen.dead.append(name)
        return output

    with torch.enable_grad(), hooked(model, before, after, lambda name: True):
        model(images)
    return seen


def is_dead(value: Tensor, output: Tensor) -> bool:
    """Tell whether hardly a value of a layer's input moves its output, or by how much is not finite."""
    if not output.requires_grad:
        return True
    # Of ones, the product with a softmax's Jacobian is zero, and a norm's.
    weights = torch.randn(output.shape, generator=torch.Generator().manual_seed(0)).to(output)
    found = torch.autograd.grad(output, value, weights, retain_graph=True, allow_unused=True)[0]
    return found is None or bool(((found == 0) | ~found.isfinite()).double().mean() > DEAD)


def cuts(seen: Trace, logits: Tensor) -> list[Cut]:
    """Return what may be passed by, the likeliest first, at most MOST_CUTS.

    Args:
        logits: (batch, classes) of the model, with which the logits at an exit must agree.
    """
    dead = tuple(seen.dead)
    answer = best_exit(seen, logits)
    entries: list[str | None] = []
    for name in reversed(seen.entries):  # the deepest sees what is left of the image last
        if not any(other and torch.equal(seen.entries[other], seen.entries[name]) for other in entries):
            entries.append(name)
    found = [Cut(dead, entry, way) for entry in (*entries, None) for way in dict.fromkeys((answer, None))]
    return [cut for cut in found if cut != Cut()][:MOST_CUTS]


def best_exit(seen: Trace, logits: Tensor) -> tuple[str, int] | None:
    """Return the call whose logits name the model's class most often, the first of equals; None if none does so."""
    agreed = {
        call: (found.argmax(1) == logits.argmax(1)).double().mean().item() for call, found in seen.exits.items()
    }
    best = max(agreed.values(), default=0.0)
    return next(call for call in agreed if agreed[call] == best) if best > 0.5 else None
