"""Common corruptions (Hendrycks & Dietterich 2019, https://arxiv.org/abs/1903.12261) and plain random noise."""

import kapdist

kapdist.callable_room(__name__)
