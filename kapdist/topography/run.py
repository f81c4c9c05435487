"""`kapdist topography`: a run and those beside it, on the same images; one record and its plots."""

from __future__ import annotations

import contextlib
import re
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from kapdist.environment import package_versions, usable_cpus
from kapdist.errors import InputError, shown
from kapdist.records.sealed import write_json
from kapdist.records.topography import Topography, read_topography
from kapdist.report.topography_plots import topography_plots
from kapdist.run.files import check_outputs, write_atomic
from kapdist.run.lock import locked
from kapdist.run.paths import RunDir, TopographyDir, labels
from kapdist.run.progress import Progress
from kapdist.topography.images import Images, check_beside, read_images
from kapdist.topography.measure import STAGE_IMAGES, Settings, measure_subject
from kapdist.topography.null import BAND
from kapdist.topography.responses import POSITIONS
from kapdist.topography.subject import Subject, moments_of, subject_of
from kapdist.topography.variance import ACTIVATION_STDS, INPUT_STDS, Kind, Noise

PACKAGES = ("kapdist", "torch", "numpy")
DEVICES = ("auto", "cpu", "cuda")
NAME = r"\w[\w.+-]{0,99}"  # as of configs
LAYOUT = "sheet"  # of runs of which none averages


@dataclass(frozen=True)
class Asked:
    """What the command line asks for.

    Args:
        name: of the result.
        images: None takes 512, or all where there are fewer.
        permutations: of the null.
        draws: of each noise; 0 leaves the noise out.
        device: auto, cpu or cuda.

    Raises:
        InputError: a number that says nothing, or a name that no file can have.
    """

    name: str = "topography"
    images: int | None = None
    permutations: int = 1999
    seed: int = 0
    draws: int = 3
    noisy_images: int = 16
    device: str = "auto"

    def __post_init__(self) -> None:
        if not re.fullmatch(NAME, self.name):
            raise InputError("--name", "letters, digits, and . _ + - in between", shown(self.name))
        if self.draws == 1:
            raise InputError("--draws", "0 (no noise), or at least 2 for a variance", "1")
        if self.permutations < BAND:
            raise InputError("--permutations", f"at least {BAND}", str(self.permutations))
        if self.device not in DEVICES:
            raise InputError("--device", " or ".join(DEVICES), shown(self.device))


def run_topography(run: Path, beside: Sequence[Path], asked: Asked) -> Topography:
    """Look at a run's kernels and write RUN/topography/<name>/: topography.json, and the plots as PNG.

    Raises:
        InputError: a run is none, has left no weights, is named twice, or answers with what is not finite; runs
            beside it have images of another size or other classes; there are fewer images than asked for; somebody
            else is at work there.
    """
    started = time.perf_counter()
    subjects = subjects_of([run, *beside])
    place = RunDir(run).topography(asked.name)
    with locked(place.lock), computing(asked.device) as device:
        check_outputs(place.record)
        images = read_images(subjects[0], asked.images, asked.seed)
        settings = settings_of(subjects, asked)
        with Progress(
            f"{subjects[0].label}/{asked.name}", work_of(subjects, images, settings), "images"
        ) as progress:
            ticks = Ticks(progress)
            found = [measure_subject(one, images, settings, device, ticks) for one in subjects]
        record = Topography(
            name=asked.name,
            run=subjects[0].run.name,
            layout=settings.layout,
            seed=asked.seed,
            num_images=images.count,
            num_noisy_images=min(asked.noisy_images, images.count) if asked.draws else 0,
            positions=POSITIONS,
            permutations=asked.permutations,
            band_permutations=BAND,
            draws=asked.draws,
            data=str(images.path),
            data_fingerprint=images.fingerprint,
            images_sha256=images.ids_sha256,
            class_names=images.class_names,
            device=torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
            threads=settings.threads,
            packages=package_versions(PACKAGES),
            subjects=tuple(found),
            seconds=time.perf_counter() - started,
        )
        return kept(place, record)


def kept(place: TopographyDir, record: Topography) -> Topography:
    """Write the plots, then the record that speaks of them; return it as a reader gets it."""
    for plot in topography_plots(record):
        write_atomic(place.plot(plot.name), plot.png)
    write_json(place.record, record.describe())
    return read_topography(place.record)


def subjects_of(paths: Sequence[Path]) -> list[Subject]:
    """Return the runs, the first one's classes and images agreed to by all."""
    roots = [Path(path).resolve() for path in paths]
    if twice := next((path for number, path in enumerate(paths) if roots[number] in roots[:number]), None):
        raise InputError(f"--beside {twice}", "each run once", "the same one again")
    subjects = [subject_of(path, label) for path, label in zip(paths, labels(paths), strict=True)]
    for other in subjects[1:]:
        check_beside(subjects[0], other)
    return subjects


def settings_of(subjects: Sequence[Subject], asked: Asked) -> Settings:
    """Return what is measured of all: runs without an average lie on the sheet of the first that has one."""
    averaging = next((one for one in subjects if one.averages), None)
    own = {one.config.kap.noise_std for one in subjects} - {0}
    stds: list[tuple[Kind, float]] = [("input", std) for std in INPUT_STDS]
    stds += [("activation", std) for std in sorted({*ACTIVATION_STDS, *own})]
    noises = tuple(Noise(kind, std, asked.draws, asked.seed) for kind, std in stds) if asked.draws else ()
    return Settings(
        layout=averaging.config.kap.layout if averaging else LAYOUT,
        permutations=asked.permutations,
        seed=asked.seed,
        noises=noises,
        noisy_images=asked.noisy_images,
        threads=usable_cpus(),
    )


def work_of(subjects: Sequence[Subject], images: Images, settings: Settings) -> int:
    """Return how many images will be shown, each time counted."""
    noisy = min(settings.noisy_images, images.count) * sum(noise.draws for noise in settings.noises)
    stages = min(STAGE_IMAGES, images.count)
    return sum(images.count + noisy + stages * sum(1 for _ in moments_of(one)) for one in subjects)


class Ticks:
    """Counts images on a progress bar."""

    def __init__(self, progress: Progress) -> None:
        self.progress, self.done = progress, 0
        progress.show(0)

    def __call__(self, images: int) -> None:
        self.done += images
        self.progress.show(self.done)


@contextlib.contextmanager
def computing(name: str) -> Iterator[torch.device]:
    """Compute on a device, with all CPUs that this process may use; afterwards as before.

    Raises:
        InputError: a GPU is asked for and there is none.
    """
    if name == "cuda" and not torch.cuda.is_available():
        raise InputError("--device", "a GPU", "none on this machine")
    cuda = name != "cpu" and torch.cuda.is_available()
    threads = torch.get_num_threads()
    torch.set_num_threads(usable_cpus())
    try:
        yield torch.device("cuda" if cuda else "cpu")
    finally:
        torch.set_num_threads(threads)
