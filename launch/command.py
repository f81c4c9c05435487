"""What the commands of launch/ have in common: the words of those that queue something, and how they do it.

All of them end with 0 when done, with 2 and one line of what is wrong with the input, with 1 and one line where
Slurm does not answer, with 1 and a traceback else.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import shlex
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol, TypeVar

from kapdist.config.fields import Section
from kapdist.config.file import load_config
from kapdist.errors import InputError, TransientError
from kapdist.run.asked import ended_by_sigterm
from kapdist.run.files import output
from kapdist.run.installed import extras_named
from kapdist.run.paths import AttackDir, RunDir, SeedsDir, StudyDir
from kapdist.run.standard_output import open_standard_streams
from launch import journal, slurm
from launch.cluster import ClusterConfig, load_cluster, split_words

Place = RunDir | AttackDir | StudyDir | SeedsDir
C = TypeVar("C", bound=Section)
HERE = Path(__file__).parent


class Command(Protocol):
    """What a command queues.

    `directory` is what the jobs work on, `touched` what nobody else may submit meanwhile. `dry_run` returns the
    scripts and what would be written, without writing. `is_needed` says so where all is done, or waits or runs,
    which `force` cancels. `queue` submits, with `force` also what is done, and returns the line for the user, ""
    where Slurm is not asked.
    """

    @property
    def directory(self) -> Place: ...
    @property
    def touched(self) -> Sequence[Place]: ...
    def dry_run(self) -> str: ...
    def is_needed(self, force: bool) -> bool: ...
    def queue(self, force: bool = False) -> str: ...


def spelled(name: str) -> str:
    """Return how a command is called here: by its file in a checkout, by kapdist-launch where there is none."""
    return f"python launch/{name}.py" if (HERE.parent / "pyproject.toml").is_file() else f"kapdist-launch {name}"


def plain_parser(name: str, doc: str) -> argparse.ArgumentParser:
    """Return a parser without words, which is called and described as the command of this name."""
    called = spelled(name)
    described = doc.splitlines()[0].replace(f"python launch/{name}.py", called)
    return argparse.ArgumentParser(prog=called.removeprefix("python "), description=described)


def parser_of(name: str, doc: str, config: str, force: str, run: str = "") -> argparse.ArgumentParser:
    """Return the words that all these commands take, each with its own explanation."""
    parser = plain_parser(name, doc)
    if run:
        parser.add_argument("run", type=Path, help=run)
    parser.add_argument("config", type=Path, help=config)
    parser.add_argument("words", nargs="*", metavar="key=value", help="of the config, or cluster.key=value")
    parser.add_argument("--cluster", type=Path, help="YAML file of the cluster (kapdist:cluster/gpu_nodes.yaml)")
    parser.add_argument("--dry-run", action="store_true", help="print what would be submitted and written")
    parser.add_argument("--force", action="store_true", help=force)
    return parser


def parse(parser: argparse.ArgumentParser, kind: type[C]) -> tuple[argparse.Namespace, C, ClusterConfig]:
    """Return the arguments, and the configs of the job and of the cluster that they name."""
    arguments = parser.parse_intermixed_args()
    words, cluster_words = split_words(arguments.words)
    config = load_config(kind, arguments.config, words)
    return arguments, config, load_cluster(arguments.cluster, cluster_words)


def submit(command: Command, arguments: argparse.Namespace) -> bool:
    """Queue what is needed while nobody else does so, or print it; return whether it was needed."""
    if arguments.dry_run:
        print(command.dry_run())
        return False
    with ended_by_sigterm(), output(command.directory.root), contextlib.ExitStack() as held:
        for folder in sorted(place.slurm for place in command.touched):  # in one order: nobody waits in a circle
            held.enter_context(slurm.submitting(folder))
            journal.settle(folder)
        needed = command.is_needed(arguments.force)
        if needed and (queued := command.queue(arguments.force)):
            print(f"{queued} ({spelled('status')} {shlex.quote(str(command.directory.root))})")
    return needed


def command_line(main: Callable[[], None]) -> None:
    """Run a command and leave with its exit code."""
    open_standard_streams()
    try:
        with extras_named():
            main()
    except InputError as error:
        print(f"kapdist: {error}", file=sys.stderr)
        sys.exit(2)
    except TransientError as error:
        print(f"kapdist: {error}", file=sys.stderr)
        sys.exit(1)
    except BrokenPipeError:  # whoever read has read enough: ... | head
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except OSError as error:
        if error.filename is None:
            raise
        print(f"kapdist: {error.filename}: expected a place to write, found: {error.strerror}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)
