"""Standard normal numbers as a function of (key, draw, place): the definition, in torch's own operations.

A stream has a key of 64 bits; its draws are counted. The number at a place of a draw comes from Philox4x32-7 of
the key, the draw and the place, so it depends neither on who computes it nor in how many pieces: `normal_cpu` and
`normal_gpu` are the same function, to rounding, for CPUs with numba and GPUs with Triton.

Places lie in blocks of 8 runs of 128. One call of Philox gives four words, each word a pair of normal numbers by
Box and Muller's method, of which the first lies in an even run and the second in the next: 20 bits of the word for
the radius (at most 5.4 standard deviations), 12 for the angle.

Source: Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011, section 3.3, and table 2 (7 rounds
are the fewest that pass BigCrush); Box and Muller, "A note on the generation of random normal deviates", 1958.
"""

import math

import torch
from torch import Tensor

RUN = 128
BLOCK = 8 * RUN
_BLOCKS_AT_ONCE = 512  # what is worked out between is 40 times as large as what comes out
_LOW = 0xFFFFFFFF


def normal(numel: int, key: int, draw: int, device: torch.device) -> Tensor:
    """The numbers at places 0 to numel - 1 of a draw, float32, in shape (numel,)."""
    blocks = -(-numel // BLOCK)
    starts = range(0, blocks, _BLOCKS_AT_ONCE)
    parts = [_blocks(start, min(start + _BLOCKS_AT_ONCE, blocks), key, draw, device) for start in starts]
    return torch.cat([torch.empty(0, device=device), *parts])[:numel]


def _blocks(first: int, last: int, key: int, draw: int, device: torch.device) -> Tensor:
    counters = torch.arange(first * RUN, last * RUN, device=device)
    words = torch.stack(philox(counters, draw, key)).view(4, -1, 1, RUN)
    radius = ((words >> 12).float().add(0.5) / 2**20).log().mul(-2).sqrt()
    angle = ((words & 4095).float().add(0.5) / 4096 - 0.125) * (2 * math.pi)
    pairs = torch.cat([radius * angle.cos(), radius * angle.sin()], dim=2)
    return pairs.transpose(0, 1).flatten()


def philox(counters: Tensor, draw: int, key: int, rounds: int = 7) -> list[Tensor]:
    """Philox4x32 of the counters (low word first: place, draw, 0), as four int64 tensors of words of 32 bits."""
    words = [counters & _LOW, *(torch.full_like(counters, word) for word in (draw & _LOW, draw >> 32, 0))]
    keys = [key & _LOW, key >> 32]
    for _ in range(rounds):
        even, odd = words[0] * 0xD2511F53, words[2] * 0xCD9E8D57  # wrapped: of 64 bits none is lost
        high = [(product >> 32) & _LOW for product in (even, odd)]
        words = [high[1] ^ words[1] ^ keys[0], odd & _LOW, high[0] ^ words[3] ^ keys[1], even & _LOW]
        keys = [(keys[0] + 0x9E3779B9) & _LOW, (keys[1] + 0xBB67AE85) & _LOW]
    return words
