"""`kapdist export ATTACK --format bundle`: a merged attack in one file that a reviewer can check on a CPU."""

from __future__ import annotations

import platform
from collections.abc import Iterator, Sequence
from pathlib import Path

from kapdist.environment import package_versions
from kapdist.errors import InputError
from kapdist.records.attack_plan import run_of
from kapdist.records.bundle import NETWORK, README, SUFFIXES, WEIGHTS, Manifest, write_bundle
from kapdist.records.sealed import read_checked
from kapdist.report.export.merged import Merged, read_all
from kapdist.run.files import check_outputs, file_sha256
from kapdist.run.paths import AttackDir, RunDir

DONE_AGAIN = "kapdist attack shard does its chunk again"

TEXT = """\
One adversarial attack, to be checked: {attack} on {run}.

  {norm} eps {eps:g}, {version}, noise {noise}, {num_images} images
  clean accuracy {clean:.2%}, robust accuracy {robust:.2%}

  kapdist attack verify {file}{hint}

checks every checksum, predicts the clean and the adversarial images again on a CPU, and says which breaks hold: the
model right on the clean image, the adversarial one in [0, 1] and within eps in float32, the model wrong on it.
Written by kapdist {kapdist}.

  manifest.json     every file with its sha256; the sha256 of the weights: {weights_sha256}
  plan.json         all that decides a verdict; summary.json what it added up to
  chunks/           label and verdict of each image, as they were written; records.parquet all of them
  adversarial/      clean-*.npy the images and chunk-*.npy what broke them (else the image), float32 bit by bit
  config.yaml       of the training, where there is one
{more}
The checksums tell damage. They are no signature: compare the sha256 of this file with one that you were told.
Paths in plan.json and config.yaml are those of the machine that the attack ran on.
"""


def export_bundle(directories: Sequence[Path], out: Path, with_weights: bool = False) -> Path:
    """Write one merged attack, with its images, as a file.

    Args:
        out: NAME.zip, compressed, or NAME.tar.
        with_weights: the weights too, from their file in safetensors.

    Raises:
        InputError: more than one attack, one that is not merged or kept no images, files of it that are damaged, or
            a network's source or weights that are no longer what was attacked.
    """
    if len(directories) != 1:
        raise InputError("--format bundle", "one attack, as a bundle is of one", str(len(directories)))
    if out.suffix not in SUFFIXES or out.is_dir():
        raise InputError("--out", "a file NAME.zip (compressed) or NAME.tar", str(out))
    check_outputs(out, keep_folders=False)
    merged = read_all(directories)[0]
    if not merged.plan.keep_adversarial:
        expected = "an attack with keep_adversarial=true, whose images a bundle holds"
        raise InputError(merged.dir.root, expected, "keep_adversarial=false")
    factory = merged.plan.model.by_others
    source = source_file(factory, merged.plan.model.factory_sha256)
    weights = weights_file(merged) if with_weights else None
    manifest = manifest_of(merged, factory, source, weights)
    write_bundle(out, files_of(merged, manifest, source, weights, out), manifest)
    return out


def source_file(factory: str | None, known: str | None) -> Path | None:
    """Return the file of a factory that is one, not a package's; nobody runs it here.

    Raises:
        InputError: it is gone, or another one by now.
    """
    name = factory.rpartition(":")[0] if factory else ""
    if not name.endswith(".py"):
        return None
    path = Path(name)
    found = file_sha256(path) if path.is_file() else "no such file"
    if found != known:
        raise InputError(f"model.factory={factory}", f"the file that was attacked (sha256 {known})", found)
    return path


def weights_file(merged: Merged) -> Path:
    path = merged.plan.model.weights_file(run_of(merged.dir))
    if path is None or not path.is_file() or path.suffix != ".safetensors":
        found = "the factory brings its own" if path is None else str(path) if path.is_file() else f"no {path}"
        raise InputError("--with-weights", "weights in a .safetensors file, as a bundle holds no pickle", found)
    return path


def manifest_of(merged: Merged, factory: str | None, source: Path | None, weights: Path | None) -> Manifest:
    """Return the manifest without its members, which follow from the files."""
    versions = package_versions()
    return Manifest(
        kapdist=versions["kapdist"],
        run=merged.plan.run,
        attack=merged.name,
        plan_fingerprint=merged.plan.fingerprint,
        weights_sha256=merged.plan.model.weights_sha256,
        weights=WEIGHTS if weights else None,
        factory=factory,
        factory_sha256=merged.plan.model.factory_sha256,
        factory_file=NETWORK if source else None,
        python=platform.python_version(),
        packages=versions,
        members=(),
    )


def files_of(
    merged: Merged, manifest: Manifest, source: Path | None, weights: Path | None, out: Path
) -> Iterator[tuple[str, bytes]]:
    """Yield every file by its name in the bundle, read when it is its turn."""
    attack, config = merged.dir, RunDir(run_of(merged.dir)).config
    yield README, text(merged, manifest, out).encode()
    for path in (attack.plan, attack.summary, attack.records):
        yield path.name, read_checked(path)
    if config.is_file():
        yield "config.yaml", config.read_bytes()
    for number in range(merged.plan.num_chunks):
        yield from chunk_files(attack, number)
    if source and manifest.factory_file:
        yield manifest.factory_file, source.read_bytes()
    if weights:
        yield WEIGHTS, weights.read_bytes()


def chunk_files(attack: AttackDir, number: int) -> Iterator[tuple[str, bytes]]:
    for path in (attack.chunk(number), attack.clean_images(number), attack.adversarial_images(number)):
        yield f"{path.parent.name}/{path.name}", read_checked(path, DONE_AGAIN)


def text(merged: Merged, manifest: Manifest, out: Path) -> str:
    summary, more = merged.summary, [f"Beware: {merged.doubt}."] if merged.doubt else []
    needed = merged.plan.model.weights_file(run_of(merged.dir)) is not None and not manifest.weights
    hint = " --weights FILE" if needed else ""
    if manifest.factory:
        hint += " --factory FILE.py:FUNCTION"
        more.append(f"The network is what {manifest.factory} returns (sha256 {manifest.factory_sha256}).")
        if manifest.factory_file:
            more.append(f"Its source is {manifest.factory_file}: read it, save it, and name your copy to run it.")
    return TEXT.format(
        attack=merged.name,
        run=merged.plan.run,
        norm=summary.norm,
        eps=summary.eps,
        version=summary.version,
        noise=summary.noise,
        num_images=summary.num_images,
        clean=summary.clean_accuracy.value,
        robust=summary.robust_accuracy.value,
        kapdist=manifest.kapdist,
        file=out.name,
        hint=hint,
        weights_sha256=manifest.weights_sha256,
        more="".join(f"\n{line}\n" for line in more),
    )
