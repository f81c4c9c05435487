"""The random streams of activation noise: one for each layer and device type, all from one seed."""

import hashlib

import torch
from torch import Tensor


class Streams:
    """Standard normal draws; a layer's depend on the seed and on its own earlier draws, on no other layer's.

    So the order in which layers draw is free: torch.compile runs branches in an order of its own.
    """

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self._generators: dict[tuple[int, str], torch.Generator] = {}
        self._saved: dict[tuple[int, str], Tensor] = {}  # of streams whose device has not been used yet
        self._fixed: dict[int, Tensor] = {}
        self._begun_in = torch._C._current_graph_task_id()

    def fresh(self, shape: tuple[int, ...], layer: int, like: Tensor) -> Tensor:
        """New noise of this shape, of like's dtype and device.

        Raises: RuntimeError within a backward pass, unless the streams began within the same one.
        """
        # A forward within a backward works out again what was not kept, and has to see the same noise. Who seeds
        # anew within the pass says which noise that is.
        if torch._C._current_graph_task_id() not in (-1, self._begun_in):
            raise RuntimeError(
                "fresh activation noise cannot be drawn within a backward pass: gradient checkpointing would see "
                "other noise there than in the forward pass; use kapdist.kap.noise(model, 'off' or 'fixed'), or "
                "no checkpointing"
            )
        normal = torch.empty(shape, dtype=like.dtype, device=like.device)
        return normal.normal_(generator=self._generator(layer, like.device))

    def fixed(self, shape: tuple[int, ...], layer: int, like: Tensor) -> Tensor:
        """The layer's own noise of this shape, of like's dtype and device."""
        image = self._fixed.get(layer)
        if image is None or image.shape != shape:
            # float32 on the CPU, so that every device and precision sees the same noise.
            generator = torch.Generator().manual_seed(mix(self.seed, layer))
            image = torch.empty(shape, dtype=torch.float32).normal_(generator=generator)
        self._fixed[layer] = image.to(like.device)
        return self._fixed[layer].to(like.dtype, copy=True)

    def states(self) -> dict[str, Tensor]:
        """The state of each stream that has begun, as "<layer>.<device type>"."""
        now = self._saved | {place: generator.get_state() for place, generator in self._generators.items()}
        return {f"{layer}.{kind}": state for (layer, kind), state in sorted(now.items())}

    def load_states(self, states: dict[str, Tensor]) -> None:
        for place, state in states.items():
            layer, _, kind = place.partition(".")
            self._saved[int(layer), kind] = state.cpu().clone()

    def _generator(self, layer: int, device: torch.device) -> torch.Generator:
        place = (layer, device.type)
        generator = self._generators.get(place)
        if generator is None or generator.device.index not in (None, device.index):
            if generator is not None:  # the model moved to another device of this type: the stream moves along
                self._saved[place] = generator.get_state()
            generator = torch.Generator(device=device).manual_seed(mix(self.seed, "fresh", layer))
            if place in self._saved:
                generator.set_state(self._saved.pop(place))
            self._generators[place] = generator
        return generator


def mix(seed: int, *identity: int | str) -> int:
    """A seed for each identity, all bits well mixed: torch's CPU generator looks at the low half alone."""
    text = "/".join(str(part) for part in (seed, *identity))
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") >> 1
