"""The random streams of activation noise: one for each layer and device type, all from one seed."""

import hashlib
import numbers
from typing import Any

import torch
from torch import Tensor

from kapdist.kap.draw import add_draw


class Streams:
    """Standard normal draws; a layer's depend on the seed and on its own earlier draws, on no other layer's.

    So the order in which layers draw is free: torch.compile runs branches in an order of its own. A stream is a key
    and a count of its draws, two numbers on the layer's device (`kapdist.kap.normal`).

    Raises: ValueError for a seed that is no whole number of 64 bits: no state could be saved with it, or another.
    """

    def __init__(self, seed: int) -> None:
        check_seed(seed)
        self.seed = int(seed)  # numpy's are whole numbers too
        self._streams: dict[tuple[int, str], Tensor] = {}  # (key, draws, 0)
        self._saved: dict[tuple[int, str], int] = {}  # draws, of streams whose device has not been used yet
        self._fixed: dict[int, Tensor] = {}
        self._begun_in = torch._C._current_graph_task_id()

    def fresh(self, shape: tuple[int, ...], layer: int, like: Tensor) -> Tensor:
        """New noise of this shape, of like's dtype and device.

        Raises: RuntimeError within a backward pass, unless the streams began within the same one.
        """
        drawn = torch.empty(shape, dtype=like.dtype, device=like.device)
        self.add_fresh(None, drawn.view(-1), 1.0, layer)
        return drawn

    def add_fresh(self, z: Tensor | None, out: Tensor, std: float, layer: int) -> None:
        """Writes z (without one, 0) + std * new noise into out, which may be z: flat and contiguous both.

        Raises: RuntimeError as `fresh` does.
        """
        add_draw(z, out, std, self.stream(layer, out.device))

    def stream(self, layer: int, device: torch.device) -> Tensor:
        """The layer's (key, draws, 0) on its device, for whoever draws from it now and counts the draw.

        Raises: RuntimeError as `fresh` does.
        """
        # A forward within a backward works out again what was not kept, and has to see the same noise. Who seeds
        # anew within the pass says which noise that is.
        if torch._C._current_graph_task_id() not in (-1, self._begun_in):
            raise RuntimeError(
                "fresh activation noise cannot be drawn within a backward pass: gradient checkpointing would see "
                "other noise there than in the forward pass; use kapdist.kap.noise(model, 'off' or 'fixed'), or "
                "no checkpointing"
            )
        return self._stream(layer, device)

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
        """How many draws each stream that has begun has made, as "<layer>.<device type>"."""
        now = self._saved | {place: int(stream[1]) for place, stream in self._streams.items()}
        return {f"{layer}.{kind}": torch.tensor(draws) for (layer, kind), draws in sorted(now.items())}

    def load_states(self, states: dict[str, Tensor]) -> None:
        for place, draws in states.items():
            layer, _, kind = place.partition(".")
            self._saved[int(layer), kind] = int(draws)

    def _stream(self, layer: int, device: torch.device) -> Tensor:
        place = (layer, device.type)
        stream = self._streams.get(place)
        if stream is None or (device.index is not None and stream.device != device):
            if stream is not None:  # the model moved to another device of this type: the stream moves along
                self._saved[place] = int(stream[1])
            with torch.inference_mode(False):
                start = [mix(self.seed, "fresh", layer), self._saved.pop(place, 0), 0]
                stream = self._streams[place] = torch.tensor(start, device=device)
        return stream


def check_seed(seed: Any) -> None:
    """Raises: ValueError for what is no whole number of 64 bits."""
    is_whole = isinstance(seed, numbers.Integral) and not isinstance(seed, bool)
    if not is_whole or not -(2**63) <= seed < 2**63:
        raise ValueError(f"the seed of noise must be a whole number of 64 bits, found {seed!r}")


def mix(seed: int, *identity: int | str) -> int:
    """A seed for each identity, all bits well mixed: torch's CPU generator looks at the low half alone."""
    text = "/".join(str(part) for part in (seed, *identity))
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") >> 1
