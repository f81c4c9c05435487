"""config.json as timm writes it, where timm has the architecture: `timm.create_model("local-dir:FOLDER")`.

timm's networks take images that are normalised already; mean and std are in `pretrained_cfg`, with all that its
evaluation transform needs. Keys as in timm's models/_hub.py (save_config_for_hf). timm resizes the shorter side to
floor(side / crop_pct) and takes the centre, as kapdist does with bilinear and bicubic.
"""

from __future__ import annotations

from typing import Any

from kapdist.config.networks import STRIDES
from kapdist.models.widths import stage_channels
from kapdist.models.zoo import stated, zoo_of
from kapdist.publish.form import Form

STEM = 64  # channels of timm's, whatever the stages have
USUAL = [64, 128, 256, 512]
RESNETS = {"resnet18": "resnet18", "resnet34": "resnet34", "resnet50": "resnet50", "resnet101": "resnet101"}
SHORTER = {"resnet10": ("resnet18", [1, 1, 1, 1])}  # blocks of each stage; timm's own resnet10 has another stem
BOX = {"area": "box"}  # Pillow's name, which timm takes


def timm_layout(form: Form) -> dict[str, Any] | None:
    """Return the keys of config.json that timm reads; None where it has no such network."""
    named = timm_name(form)
    if named is None:
        return None
    architecture, arguments = named
    model, names = form.config.model, list(form.class_names)
    return {
        "architecture": architecture,
        "num_classes": model.num_classes,
        **({"label_names": names} if names else {}),
        **({"model_args": arguments} if arguments else {}),
        "pretrained_cfg": pretrained_cfg(form),
    }


def timm_name(form: Form) -> tuple[str, dict[str, Any]] | None:
    """Return timm's name for the architecture and what to call it with."""
    model = form.config.model
    if not form.is_plain or model.members > 1:
        return None
    if model.factory is not None:
        name = model.factory.partition(":")[2].partition(".")[0]
        return (name, dict(model.arguments)) if zoo_of(model.factory) == "timm" else None
    if model.stem != "imagenet" or model.blurpool:
        return None
    if model.name in SHORTER:
        name, layers = SHORTER[model.name]
        arguments: dict[str, Any] = {"layers": layers}
    elif model.name in RESNETS:
        name, arguments = RESNETS[model.name], {}
    else:
        return None
    channels = stage_channels(model.widths, model.width)
    if channels[0] != STEM:
        return None
    return name, arguments | ({"channels": channels} if channels != USUAL else {})


def pretrained_cfg(form: Form) -> dict[str, Any]:
    model, data = form.config.model, form.config.data
    side, said = data.resolution, stated(model.factory) if model.factory else None
    mean, std = (said.mean, said.std) if said else (model.mean, model.std)
    if not model.normalise:
        mean, std = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)
    cfg = {
        "custom_load": False,
        "input_size": [3, side, side],
        "fixed_input_size": False,
        "interpolation": BOX.get(data.interpolation, data.interpolation),
        "crop_pct": 1.0 if data.crop == "none" else data.crop_ratio,
        "crop_mode": "center",
        "mean": list(mean),
        "std": list(std),
        "num_classes": model.num_classes,
    }
    if model.factory is not None:
        return cfg
    pool = -(-side // STRIDES["imagenet"])
    return cfg | {"pool_size": [pool, pool], "first_conv": "conv1", "classifier": "fc"}
