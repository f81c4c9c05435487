"""Common corruptions (Hendrycks & Dietterich 2019, https://arxiv.org/abs/1903.12261) and plain random noise."""

from kapdist.corruptions.corrupt import corrupt
from kapdist.corruptions.levels import KINDS
from kapdist.corruptions.run import run_corruptions

__all__ = ["KINDS", "corrupt", "run_corruptions"]
