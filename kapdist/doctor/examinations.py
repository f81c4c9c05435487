"""All that is looked at, in the order of the table."""

from __future__ import annotations

from kapdist.doctor.bounded import Examination
from kapdist.doctor.compilers import compilers
from kapdist.doctor.computing import computing
from kapdist.doctor.gpus import gpus
from kapdist.doctor.machine import cache, cpus, hosts, memory, threads
from kapdist.doctor.packages import decoders, deepspeed, python, requirements, torch
from kapdist.doctor.slurm import cluster
from kapdist.doctor.storage import storage

SLOW = "look again when the machine is less busy, or give it time (--seconds)"
HANGS = "every command that reads or writes here will hang too: go elsewhere, and tell who runs the file server"

EXAMINATIONS = (
    Examination("Python", python, "note", SLOW),
    Examination("packages", requirements, "note", SLOW),
    Examination("torch", torch, "note", SLOW),
    Examination("GPUs", gpus, "wrong", "the driver hangs: nvidia-smi will too; the node needs a reboot"),
    Examination("decoders", decoders, "note", SLOW),
    Examination("DeepSpeed", deepspeed, "note", SLOW),
    Examination("compilers", compilers, "note", SLOW),
    Examination("Slurm", cluster, "wrong", "its controller hangs: jobs cannot be submitted or asked after now"),
    Examination("file system", storage, "wrong", HANGS),
    Examination("CPUs", cpus, "note", SLOW),
    Examination("threads", threads, "note", SLOW),
    Examination("memory", memory, "note", SLOW),
    Examination(
        "network", hosts, "note", "the name service does not answer: ranks that look for each other will wait"
    ),
    Examination(
        "cache", cache, "note", "the home folder does not answer: set XDG_CACHE_HOME to a folder that does"
    ),
)

THOROUGH = Examination(
    "torch imports", computing, "wrong", "torch or a device hangs: python -X importtime -c 'import torch'"
)
