"""The rows of a chunk: one Parquet file per chunk, one row per image.

    image, label, clean_prediction    int
    broken_by                         stage that broke the image; null: misclassified, or robust
    broken_eps                        eps of that stage
    smallest                          norm of the smallest perturbation known to change the class, an upper bound of
                                      the distance; 0: misclassified; null: none known
    <stage>_broke                     bool; null: not attacked (misclassified, or broken before)
    <stage>_norm                      of the image that the attack handed back; 0: it gave up
    <stage>_prediction                for that image
    clean_draws_correct, clean_majority, adversarial_draws_correct, adversarial_majority
                                      of re-scoring: right draws, class of most draws; null: not re-scored
    chunk_forwards, chunk_backwards   of the whole chunk, a list with one number per stage: images that passed
    chunk_library_forwards, chunk_library_backwards     what the library asked for, had nothing been left out
    chunk_stage_seconds               time of each stage on the whole chunk
    chunk_rescore_forwards, chunk, chunk_seconds, plan, kapdist

A stage is an attack at one eps: its name, or name@eps where there are several. Passes and seconds belong to a
chunk, not to an image (an attack runs on the survivors as one batch), so every row of a chunk repeats them.
"""

from __future__ import annotations

import polars as pl

from kapdist.records.attack_plan import AttackPlan
from kapdist.records.sealed import read_unit
from kapdist.run.paths import AttackDir

VERDICTS = ("plan", "chunk", "image", "label", "clean_prediction", "broken_by")
PASSES = ("forwards", "backwards", "library_forwards", "library_backwards")


def read_chunk(attack: AttackDir, plan: AttackPlan, chunk: int) -> pl.DataFrame | None:
    """Return the verdicts on a chunk that is done; a damaged file does not count.

    Raises:
        InputError: the file belongs to another plan, and is not overwritten.
    """
    path, images = attack.chunk(chunk), plan.chunk_images(chunk)
    table = read_unit(path, VERDICTS, "chunk", plan.fingerprint, images)
    return table if table is not None and set(table["chunk"]) == {chunk} else None
