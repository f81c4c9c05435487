"""The plots of a certification: certified accuracy by radius, and the chances that radii come from."""

from __future__ import annotations

import matplotlib
import numpy as np

from kapdist.records.certificate import P_A_BINS, CertificateSummary
from kapdist.report.plots import STYLE, Plot, canvas, drawn, legend, look
from kapdist.report.words import percent


def accuracy_plot(found: CertificateSummary, name: str) -> Plot:
    """Draw certified accuracy by radius with its 95% band over images, a line for each sigma."""
    with matplotlib.rc_context(STYLE):
        figure, axes = canvas("L2 radius, images in [0, 1]", "Certified accuracy, %")
        for number, smoothed in enumerate(found.smoothed):
            looks, radii = look(number) | {"drawstyle": "steps-pre"}, [at.radius for at in smoothed.certified]
            shares = 100 * np.array(
                [[at.accuracy.value, at.accuracy.low, at.accuracy.high] for at in smoothed.certified]
            )
            axes.fill_between(
                radii, shares[:, 1], shares[:, 2], color=looks["color"], alpha=0.15, linewidth=0, step="pre"
            )
            axes.plot(
                radii, shares[:, 0], **looks, markevery=max(1, len(radii) // 10), label=f"σ {smoothed.sigma:g}"
            )
        axes.set_ylim(0, 100)
        axes.set_xlim(left=0)
        legend(figure, axes)
        told = "; ".join(
            f"σ {smoothed.sigma:g}: "
            + ", ".join(f"{at.radius:g}: {percent(at.accuracy.value)}" for at in smoothed.certified[::5])
            for smoothed in found.smoothed
        )
        alt = f"Certified accuracy in percent by L2 radius. {told}."
        return drawn(figure, f"certified-accuracy-{name}", "Certified accuracy by radius", alt)


def chance_plot(found: CertificateSummary, name: str) -> Plot:
    """Draw over images the share of draws that are right, a line of steps for each sigma."""
    edges = np.linspace(0, 100, P_A_BINS + 1)
    with matplotlib.rc_context(STYLE):
        figure, axes = canvas("Noisy draws of an image that are right, %", "Images, %")
        for number, smoothed in enumerate(found.smoothed):
            shares = 100 * np.array(smoothed.p_a_histogram) / found.num_images
            style = {key: value for key, value in look(number).items() if key != "marker"}
            axes.stairs(shares, edges, label=f"σ {smoothed.sigma:g}", linewidth=1.6, **style)
        axes.set_xlim(0, 100)
        axes.set_ylim(bottom=0)
        figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=3, fontsize=9.5)
        told = "; ".join(
            f"σ {smoothed.sigma:g}: " + ", ".join(percent(share) for share in smoothed.p_a_quantiles)
            for smoothed in found.smoothed
        )
        alt = (
            f"Share of an image's noisy draws that are right, at 5, 25, 50, 75 and 95% of images, percent. {told}."
        )
        return drawn(figure, f"certified-chances-{name}", "How often noisy draws are right", alt)
