"""The rows of a chunk: one Parquet file per chunk, one row per image.

    image, label, clean_prediction    int
    broken_by                         stage that broke the image; null: misclassified, or robust
    broken_eps                        eps of that stage
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

from pathlib import Path

from kapdist.errors import InputError
from kapdist.records.attack_plan import AttackPlan
from kapdist.records.sealed import DamagedError, read_table

PASSES = ("forwards", "backwards", "library_forwards", "library_backwards")


def is_done(path: Path, plan: AttackPlan, chunk: int) -> bool:
    """Tell whether a file holds this chunk of this plan; a damaged one does not count.

    Raises:
        InputError: it holds a chunk of another plan, which is not overwritten.
    """
    if not path.exists():
        return False
    try:
        table = read_table(path, ["plan", "chunk", "image"])
    except DamagedError:
        return False
    if table["plan"].unique().to_list() != [plan.fingerprint]:
        raise InputError(path, f"a chunk of this plan ({plan.fingerprint[:12]})", "one of another plan")
    return tuple(table["image"]) == plan.chunk_images(chunk) and set(table["chunk"]) == {chunk}
