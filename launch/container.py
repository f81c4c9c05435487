"""How the ranks of a job run inside of a container: by srun's own options, or by a command before each of them.

Nobody asks Slurm from inside: the script's first lines and its last word run outside, on the node itself.
"""

from __future__ import annotations

import os
import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kapdist.config.fields import Section
from kapdist.errors import InputError
from launch.cluster import ClusterConfig

FILES = (".sif", ".sqsh", ".img")


@dataclass(frozen=True)
class Container:
    """The container of one kind of job."""

    cluster: ClusterConfig
    folders: Sequence[Path]
    """What is read and written inside."""

    @property
    def srun_words(self) -> list[str]:
        """Pyxis': see its README, "Usage"."""
        if self.cluster.container_runtime != "pyxis":
            return []
        mounts = ",".join(self.mounts)
        return [f"--container-image={self.image}", f"--container-mounts={mounts}", f"--container-workdir={here()}"]

    @property
    def wrapper(self) -> list[str]:
        """The words before the interpreter, quoted for the shell: `man apptainer-exec`."""
        if self.cluster.container_runtime != "apptainer":
            return []
        words = ["apptainer", "exec", "--nv", f"--bind={','.join(self.mounts)}", f"--pwd={here()}", self.image]
        return [shlex.quote(word) for word in words]

    @property
    def mounts(self) -> list[str]:
        """Every folder under its own name and where links lead from it, none that lies in another; then the user's.

        Raises:
            InputError: a name that neither runtime can mount.
        """
        wanted = {path for folder in (here(), *self.folders) for path in (folder.absolute(), folder.resolve())}
        wanted.discard(Path("/"))
        outer = [path for path in sorted(wanted) if not wanted & set(path.parents)]
        for path in outer:
            if set(str(path)) & set(":, "):
                raise InputError(path, "a folder without colon, comma and space, as it is mounted", "one of them")
        return [*(f"{path}:{path}" for path in outer), *self.cluster.container_mounts]

    @property
    def image(self) -> str:
        """The image as the runtime takes it, a file by its whole path.

        Raises:
            InputError: there is no such file.
        """
        named = str(self.cluster.container)
        if not (named.startswith(("/", "./", "../", "~")) or named.endswith(FILES)):
            return named  # of a registry
        path = Path(os.path.expanduser(named)).absolute()
        if not path.exists():
            raise InputError("cluster.container", "an image, or a folder of one", f"nothing at {path}")
        return str(path)


def folders_named(value: Any) -> Iterator[Path]:
    """Yield the folders of all paths in a config that are there: betons, weights, runs."""
    if isinstance(value, Path):
        folder = value.parent if value.suffix else value
        if folder.is_dir():
            yield folder
    elif isinstance(value, Section | tuple):
        for part in value if isinstance(value, tuple) else dict(value).values():
            yield from folders_named(part)


def here() -> Path:
    """The working directory, where relative paths of configs begin."""
    return Path().absolute()
