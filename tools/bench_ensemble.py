"""What an ensemble costs beside its members one by one: training steps, paired in one run.

    python tools/bench_ensemble.py [--steps 9] [--members 4] [--batch-size 32] [--pixels 32] [--threads N]
                                    [--device cuda] [--precision bf16] [--compile]

Needs torch alone. A round times as many steps of single networks as there are members, then one step of the
ensemble in its forms: the loop over its members, which kapdist has; the members' weights stacked, one pass by
torch.func.vmap, which computes grouped convolutions. Ratios are between steps of the same round.
"""

import argparse
import copy
import sys

import torch
from bench_step import PRECISIONS, StepRow, Trainer, machine, step_row, step_table
from torch import Tensor, nn
from torch.func import functional_call

from kapdist.models import resnet18
from kapdist.models.ensemble import Ensemble

SINGLES, LOOP, STACKED = "singles", "ensemble", "stacked"


class Stacked(nn.Module):
    """The ensemble as one pass of stacked weights: in training, running statistics are written back."""

    def __init__(self, ensemble: Ensemble) -> None:
        super().__init__()
        self.ensemble = ensemble

    def forward(self, x: Tensor) -> Tensor:
        members = list(self.ensemble.members)
        parameters = self.stacked([dict(member.named_parameters()) for member in members])
        own = [dict(member.named_buffers()) for member in members]
        buffers = self.stacked(own)

        def one(parameters: dict[str, Tensor], buffers: dict[str, Tensor]) -> Tensor:
            logits: Tensor = functional_call(members[0], (parameters, buffers), (x,))
            return logits

        logits: Tensor = torch.vmap(one)(parameters, buffers)
        with torch.no_grad():
            for number, tensors in enumerate(own):
                for name, tensor in tensors.items():
                    tensor.copy_(buffers[name][number])
        return logits.mean(0)

    def stacked(self, members: list[dict[str, Tensor]]) -> dict[str, Tensor]:
        return {name: torch.stack([member[name] for member in members]) for name in members[0]}


def bench_ensemble(
    *,
    steps: int = 9,
    warmup: int = 2,
    members: int = 4,
    batch_size: int = 32,
    pixels: int = 32,
    device: str = "cpu",
    dtype: torch.dtype = torch.float32,
    compiled: bool = False,
) -> list[StepRow]:
    """Rows of the single networks' steps together, of the loop and of the stacked form, after `steps` rounds."""
    images = torch.rand(batch_size, 3, pixels, pixels, device=device).to(memory_format=torch.channels_last)
    networks = [resnet18(10, width=0.25, stem="cifar") for _ in range(members)]
    models = [*networks, Ensemble(copy.deepcopy(networks)), Stacked(Ensemble(copy.deepcopy(networks)))]
    *singles, loop, stacked = (Trainer(model, images, dtype, compiled) for model in models)
    rounds = []
    for number in range(warmup + steps):
        seconds = {SINGLES: sum(single.seconds() for single in singles)}
        seconds |= {LOOP: loop.seconds(), STACKED: stacked.seconds()}
        rounds += [seconds] if number >= warmup else []
    return [step_row(name, SINGLES, rounds, batch_size) for name in (SINGLES, LOOP, STACKED)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=9, help="paired rounds")
    parser.add_argument("--members", type=int, default=4)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--pixels", type=int, default=32)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="of torch")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--precision", choices=PRECISIONS, default="fp32", help="autocast's, fp32 for none")
    parser.add_argument("--compile", action="store_true", help="every form under torch.compile")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    print(
        f"a training step of an ensemble of {options.members} beside {options.members} of single networks; "
        "goal: at most 1.1 times"
    )
    print(f"machine:  {machine(options.device)}")
    print(f"command:  python {' '.join(sys.argv)}")
    size = f"batch {options.batch_size}, {options.pixels} px, channels_last, {options.precision}"
    print(f"runs:     {options.steps} paired rounds; ResNet-18 of width 0.25, {size}", flush=True)
    rows = bench_ensemble(
        steps=options.steps,
        members=options.members,
        batch_size=options.batch_size,
        pixels=options.pixels,
        device=options.device,
        dtype=PRECISIONS[options.precision],
        compiled=options.compile,
    )
    print(step_table(rows))


if __name__ == "__main__":
    main()
