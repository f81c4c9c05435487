"""What papers state ImageNet-C's errors relative to.

AlexNet's top-1 errors on ImageNet-C, the mean over the five severities, as Hendrycks & Dietterich's own script has
them (https://github.com/hendrycks/robustness, ImageNet-C/test.py).
"""

from __future__ import annotations

SEVERITIES = 5
ALEXNET_ERRORS = {
    "gaussian_noise": 0.886428,
    "shot_noise": 0.894468,
    "impulse_noise": 0.922640,
    "defocus_blur": 0.819880,
    "glass_blur": 0.826268,
    "motion_blur": 0.785948,
    "zoom_blur": 0.798360,
    "snow": 0.866816,
    "frost": 0.826572,
    "fog": 0.819324,
    "brightness": 0.564592,
    "contrast": 0.853204,
    "elastic_transform": 0.646056,
    "pixelate": 0.717840,
    "jpeg_compression": 0.606500,
}
