"""The way of a batch to the device: bytes over the bus on a stream of their own, floats on the device."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from kapdist.data.load.floats import compiled_divide

# Private, and in every torch from 2.1 on; without it memory is not used again.
num_holders: Callable[[int], int] | None = getattr(torch._C, "_storage_Use_Count", None)


@dataclass(frozen=True)
class Sent:
    """A batch on its way: uint8 (batch, side, side, 3) and labels; `arrived` is None on the CPU."""

    pixels: Tensor
    labels: Tensor
    arrived: torch.cuda.Event | None


class Memory:
    """Memory for images on the CPU that is used again when its last holder has let go.

    A batch takes tens of MB, which the C library gets from the system and gives back every time: the page faults
    cost a fifth of all loading. What is in anybody's hands (a tensor, a view, the graph of a backward pass, a
    NumPy array) counts as held, so whoever keeps a batch keeps it whole.
    """

    KEPT = 2  # the batch at work, and the one that its variable held until now

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.kept: list[tuple[Tensor, torch.UntypedStorage, int]] = []

    def take(self, length: int) -> Tensor:
        """Return (length,) float32 that nobody else holds, its values undefined."""
        with self.lock:
            for index, (memory, storage, alone) in enumerate(self.kept):
                if num_holders is not None and num_holders(storage._cdata) == alone:
                    if len(memory) >= length:
                        return memory[:length]
                    del self.kept[index]  # too small for what is asked for now
                    break
            memory = torch.empty(length)
            if num_holders is not None and len(self.kept) < self.KEPT:
                storage = memory.untyped_storage()
                self.kept.append((memory, storage, num_holders(storage._cdata)))
                return memory[:length]  # a view, so that letting go of it shows
            return memory


class Mover:
    """Copies batches to the device beside the computation, and makes floats of them there.

    Bytes travel, a quarter of the floats' traffic, from pinned memory on a side stream, so the copy of the next
    batch runs while the model computes on this one. Mean and standard deviation are the model's own first step.
    `ahead` is how many batches should be sent before the first is received.
    """

    def __init__(self, device: torch.device, channels_last: bool) -> None:
        self.device, self.channels_last = device, channels_last
        self.stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        self.memory = Memory()
        self.ahead = 0 if self.stream is None else 1

    def send(self, pixels: Tensor, labels: Tensor) -> Sent:
        """Begin the copy of (batch, side, side, 3) uint8; its memory must stay as it is until `arrived`."""
        if self.stream is None:
            return Sent(pixels, labels, None)
        labels = labels.pin_memory()
        with torch.cuda.stream(self.stream):
            labels = labels.to(self.device, non_blocking=True)  # first: they do not wait for the pixels
            there = pixels.to(self.device, non_blocking=True), labels
            arrived = torch.cuda.Event()
            arrived.record(self.stream)
        return Sent(*there, arrived)

    def receive(self, sent: Sent) -> tuple[Tensor, Tensor]:
        """Return images (batch, 3, side, side) float32 in [0, 1] and labels, for use on the current stream."""
        if sent.arrived is not None:
            here = torch.cuda.current_stream(self.device)
            here.wait_event(sent.arrived)
            for tensor in (sent.pixels, sent.labels):
                tensor.record_stream(here)  # or the side stream would take their memory for its next batch
            return self.on_device(sent.pixels), sent.labels
        return self.floats(sent.pixels), sent.labels

    def on_device(self, pixels: Tensor) -> Tensor:
        """Return (batch, side, side, 3) uint8 that is on the device as the images that receive returns."""
        # Permuting keeps the bytes, which are channels-last already. Divided by a tensor: a GPU would multiply by a
        # number's reciprocal, which rounds twice, and half of the bytes would be other floats than on a CPU.
        images = pixels.permute(0, 3, 1, 2).float().div_(torch.full((), 255.0, device=pixels.device))
        return images if self.channels_last else images.contiguous()

    def floats(self, pixels: Tensor) -> Tensor:
        """Copy (batch, side, side, 3) uint8, on the CPU, to the images that receive returns."""
        count, height, width, channels = pixels.shape
        memory = self.memory.take(pixels.numel())
        if self.channels_last:
            images = memory.view(pixels.shape)
            compiled_divide()(pixels.contiguous().numpy(), images.numpy())
            return images.permute(0, 3, 1, 2)
        return memory.view(count, channels, height, width).copy_(pixels.permute(0, 3, 1, 2)).div_(255)
