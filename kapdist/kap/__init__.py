"""Kernel Average Pooling: the mean filter over kernels, its convolution, its noise. Imports torch alone."""

from kapdist.kap.average import kernel_average
from kapdist.kap.conv import KAPConv2d
from kapdist.kap.fold import fold
from kapdist.kap.kapify import kapify
from kapdist.kap.noise import load_noise_state, noise, noise_state, seed_noise
from kapdist.kap.norms import NoNormError
from kapdist.kap.pool import KernelAveragePool
from kapdist.kap.topography import kernel_similarity

__all__ = [
    "KAPConv2d",
    "KernelAveragePool",
    "NoNormError",
    "fold",
    "kapify",
    "kernel_average",
    "kernel_similarity",
    "load_noise_state",
    "noise",
    "noise_state",
    "seed_noise",
]
