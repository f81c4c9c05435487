"""The way of a batch to the device: bytes over the bus on a stream of their own, floats on the device."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Sent:
    """A batch on its way: uint8 (batch, side, side, 3) and labels; `arrived` is None on the CPU."""

    pixels: Tensor
    labels: Tensor
    arrived: torch.cuda.Event | None


class Mover:
    """Copies batches to the device beside the computation, and makes floats of them there.

    Bytes travel, a quarter of the floats' traffic, from pinned memory on a side stream, so the copy of the next
    batch runs while the model computes on this one. Mean and standard deviation are the model's own first step.
    `ahead` is how many batches should be sent before the first is received.
    """

    def __init__(self, device: torch.device, channels_last: bool) -> None:
        self.device, self.channels_last = device, channels_last
        self.stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        self.ahead = 0 if self.stream is None else 1

    def send(self, pixels: Tensor, labels: Tensor) -> Sent:
        """Begin the copy of (batch, side, side, 3) uint8; its memory must stay as it is until `arrived`."""
        if self.stream is None:
            return Sent(pixels, labels, None)
        with torch.cuda.stream(self.stream):
            there = pixels.to(self.device, non_blocking=True), labels.to(self.device, non_blocking=True)
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
        # The conversion is the copy, on the CPU; permuting keeps the bytes, which are channels-last already.
        images = sent.pixels.permute(0, 3, 1, 2).float().div_(255)
        return images if self.channels_last else images.contiguous(), sent.labels
