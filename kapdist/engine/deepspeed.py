"""The second engine: DeepSpeed with ZeRO 0, 1 or 2. Its losses and its states are the reference engine's."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from kapdist.config import EngineConfig
from kapdist.engine.base import Engine
from kapdist.engine.contained import environment, load_deepspeed
from kapdist.engine.ranks import Ranks
from kapdist.engine.zero import Partitioned

AUTOCAST = {"fp32": None, "bf16": "bfloat16", "fp16": "float16"}
BUCKET_ELEMENTS = 2**24  # of one message; DeepSpeed's default allocates 2 GB for it, however small the model


class DeepSpeedEngine(Engine):
    """Gradients are whole on every rank at stage 0; at 1 and 2 each updates its partition of the weights.

    `state` is the reference engine's, at every stage and on any number of ranks, so each continues the others'.

    Raises:
        InputError: the installed DeepSpeed is not the one that this was written for.
    """

    def start(self, config: EngineConfig) -> None:
        groups = [list(group["params"]) for group in self.optimizer.param_groups]
        self.engine = initialize(self.module, self.optimizer, config, self.ranks, self.clip_grad_norm)
        self.partitioned: Partitioned | None = None
        if config.zero_stage:
            fp16 = config.precision == "fp16"
            self.partitioned = Partitioned(self.engine, self.optimizer, groups, self.ranks, fp16)
        else:
            theirs = self.engine.torch_autocast_z0_gradscaler
            self.scaler = torch.amp.GradScaler(self.ranks.device.type, enabled=False) if theirs is None else theirs

    def forward_each(self, *batches: Tensor) -> tuple[Tensor, ...]:
        self.begin_forward()
        return tuple(self.engine(images) for images in batches)

    @property
    def loss_scale(self) -> float:
        if self.partitioned is None:
            return super().loss_scale
        return 1.0 if self.partitioned.loss_scale is None else self.partitioned.loss_scale.scale

    def scaled(self, loss: Tensor) -> Tensor:
        return super().scaled(loss) if self.partitioned is None else self.loss_scale * loss

    def forward_alone(self, images: Tensor) -> Tensor:
        with self.autocast():  # as their forward does around the module
            return self.engine.module(images)

    @contextlib.contextmanager
    def accumulating(self, more: bool) -> Iterator[None]:
        self.engine.set_gradient_accumulation_boundary(not more)
        yield

    def backward(self, loss: Tensor) -> None:
        self.engine.backward(loss, scale_wrt_gas=False)

    def descend(self, measure: bool) -> Tensor | None:
        if self.partitioned is None:
            return super().descend(measure)
        self.begins_step = True
        return self.partitioned.step()

    def take_step(self) -> None:
        self.engine.step()

    def optimizer_state(self) -> dict[str, Any]:
        return self.partitioned.state() if self.partitioned else super().optimizer_state()

    def load_optimizer_state(self, state: dict[str, Any]) -> None:
        if self.partitioned:
            self.partitioned.load_state(state)
        else:
            super().load_optimizer_state(state)


def initialize(
    module: nn.Module,
    optimizer: torch.optim.Optimizer,
    config: EngineConfig,
    ranks: Ranks,
    clip_grad_norm: float,
) -> Any:
    """Return DeepSpeed's engine around a module, in the process group that is there; it never makes one."""
    deepspeed = ranks.together(lambda: load_deepspeed(ranks.device))
    # Its start reads weights as flat bytes and ZeRO cuts them up: they must be contiguous. Images may be
    # channels_last all the same, and then activations are.
    module.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]  # torch's stubs lack it
    network = torch.compile(module, dynamic=False) if config.compile else module
    device_index = ranks.device.index or 0
    with environment(LOCAL_RANK=str(device_index)):
        engine, _, _, _ = deepspeed.initialize(
            model=network,
            optimizer=optimizer,
            config=settings(config, clip_grad_norm, sum(p.numel() for p in module.parameters())),
            dist_init_required=False,
        )
    # They time forwards and profile them, and would do so when the module is evaluated without the engine.
    engine.module_forward_pre_hook.remove()
    engine.module_forward_post_hook.remove()
    if config.channels_last and not config.zero_stage:
        module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return engine


def settings(config: EngineConfig, clip_grad_norm: float, num_parameters: int) -> dict[str, Any]:
    """Return DeepSpeed's own config; whatever has a harmful default is written."""
    bucket = min(BUCKET_ELEMENTS, 2 * num_parameters)  # even, as DeepSpeed wants it
    return {
        # Bookkeeping: the plan cuts batches, and the loss weighs their parts.
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 1,
        # The default is 1. At stage 0 the gradient is clipped by us, since DeepSpeed does not tell its norm.
        "gradient_clipping": clip_grad_norm if config.zero_stage else 0.0,
        "zero_allow_untested_optimizer": True,
        "zero_optimization": {
            "stage": config.zero_stage,
            "reduce_bucket_size": bucket,
            "allgather_bucket_size": bucket,
            "overlap_comm": False,
        },
        # bf16.enabled and fp16.enabled cast the weights, which breaks batch norm, EMA and evaluation in fp32.
        # No module is "safe": gradients are added up in fp32, as in DDP.
        "torch_autocast": {
            "enabled": AUTOCAST[config.precision] is not None,
            "dtype": AUTOCAST[config.precision] or "bfloat16",
            "lower_precision_safe_modules": [],
        },
        "steps_per_print": None,
        "timers": {"throughput": {"enabled": False}},
    }
