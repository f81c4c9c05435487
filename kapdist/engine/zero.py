"""The optimizer state that ZeRO divides among ranks, as the whole that any engine continues; its loss scale.

ZeRO lays the parameters of a group one after another in a flat tensor, pads it and cuts it into one partition per
rank. A rank's optimizer knows its partition alone, as one flat parameter per group (Rajbhandari et al. 2020).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from kapdist.engine.ranks import Ranks

State = dict[str, Any]


class Partitioned:
    """Stages 1 and 2: each rank updates its partition of the weights and gathers those of the others.

    Args:
        engine: DeepSpeed's engine.
        optimizer: torch's optimizer inside of it.
        groups: the parameters of each of its groups, as they were before DeepSpeed replaced them.
    """

    def __init__(
        self, engine: Any, optimizer: torch.optim.Optimizer, groups: list[list[Tensor]], ranks: Ranks, fp16: bool
    ) -> None:
        self.engine, self.optimizer, self.groups, self.ranks = engine, optimizer, groups, ranks
        self.zero = engine.optimizer
        self.zero.torch_autocast_gradscaler = None
        self.loss_scale = LossScale(ranks.device) if fp16 else None
        self.hand_over_loss_scale()

    def hand_over_loss_scale(self) -> None:
        if self.loss_scale is not None:
            self.zero.override_loss_scale(self.loss_scale.scale)

    def step(self) -> Tensor:
        """Update the weights; return the norm, which is measured in any case: an overflow is seen by it.

        Raises:
            FloatingPointError: the gradient is not finite, which no loss scale explains.
        """
        self.engine.step()
        overflow = bool(self.zero.overflow)
        if self.loss_scale is not None:
            self.loss_scale.update(overflow)
            self.hand_over_loss_scale()
        elif overflow:
            raise FloatingPointError("the gradient is not finite, and ZeRO left the weights as they were")
        return torch.as_tensor(self.engine.get_global_grad_norm())

    def state(self) -> State:
        """Return optimizer and scaler as they are without ZeRO, the same on all ranks; each of them must ask."""
        flat = self.optimizer.state_dict()
        state: dict[int, State] = {}
        param_groups = []
        for number, (group, settings) in enumerate(zip(self.groups, flat["param_groups"], strict=True)):
            names = list(range(len(state), len(state) + len(group)))
            param_groups.append(settings | {"params": names})
            state |= {name: {} for name in names}
            for key, value in flat["state"].get(number, {}).items():
                for name, part in zip(names, self.whole(number, value), strict=True):
                    state[name][key] = part
        known = {name: values for name, values in state.items() if values}
        scaler = {} if self.loss_scale is None else self.loss_scale.values
        return {"optimizer": {"state": known, "param_groups": param_groups}, "scaler": dict(scaler)}

    def load_state(self, whole: State) -> None:
        """Take over this rank's share of a state without ZeRO, after the weights themselves."""
        self.zero.refresh_fp32_params()
        state = {}
        param_groups = []
        for number, settings in enumerate(whole["optimizer"]["param_groups"]):
            values = [whole["optimizer"]["state"].get(name, {}) for name in settings["params"]]
            state[number] = {key: self.share(number, [value[key] for value in values]) for key in values[0]}
            param_groups.append(settings | {"params": [number]})
        self.optimizer.load_state_dict({"state": state, "param_groups": param_groups})
        if self.loss_scale is not None:
            self.loss_scale.values = dict(whole["scaler"])
            self.hand_over_loss_scale()

    def whole(self, number: int, value: Any) -> list[Any]:
        """Return the values of one group's parameters, given this rank's partition of them."""
        if not isinstance(value, Tensor):
            return [value] * len(self.groups[number])
        if value.dim() == 0:  # AdamW's count of steps, which it adds to in place: each parameter has its own
            return [value.clone() for _ in self.groups[number]]
        flat = torch.empty_like(self.zero.bit16_groups_flat[number], dtype=value.dtype)
        torch.distributed.all_gather(list(flat.chunk(self.ranks.world_size)), value)
        return [self.within(flat, number, parameter) for parameter in self.groups[number]]

    def share(self, number: int, values: list[Any]) -> Any:
        """Return this rank's partition of the values of one group's parameters."""
        if not isinstance(values[0], Tensor):
            return values[0]
        if values[0].dim() == 0:
            return values[0].clone()
        flat = torch.zeros_like(self.zero.bit16_groups_flat[number], dtype=values[0].dtype)
        for parameter, value in zip(self.groups[number], values, strict=True):
            self.within(flat, number, parameter).copy_(value)
        return flat.chunk(self.ranks.world_size)[self.ranks.rank].clone()

    def within(self, flat: Tensor, number: int, parameter: Tensor) -> Tensor:
        """Return the view of a flat tensor at the place that a parameter has in its group's."""
        start = parameter.storage_offset() - self.zero.bit16_groups_flat[number].storage_offset()
        return flat[start : start + parameter.numel()].view(parameter.shape)


class LossScale:
    """The loss scale of fp16: torch's GradScaler, its policy and its state, where an overflow is found by others.

    DeepSpeed 0.19.8 has a GradScaler of its own with ZeRO, and it cannot be used: the scale does not go down when
    a step is skipped, clipping takes the scaled gradient for the true one, and each group counts as a step.
    """

    def __init__(self, device: torch.device) -> None:
        self.values = torch.amp.GradScaler(device.type).state_dict()

    @property
    def scale(self) -> float:
        return self.values["scale"]

    def update(self, overflow: bool) -> None:
        """Lower the scale after an overflow, raise it after `growth_interval` steps without one."""
        values = self.values
        values["_growth_tracker"] = 0 if overflow else values["_growth_tracker"] + 1
        if overflow:
            values["scale"] *= values["backoff_factor"]
        elif values["_growth_tracker"] == values["growth_interval"]:
            values["scale"] *= values["growth_factor"]
            values["_growth_tracker"] = 0
