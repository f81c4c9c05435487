"""Debian's packages that a sandbox needs, installed where they are missing."""

from __future__ import annotations

import os
import shutil
import subprocess

from sandbox.settings import SandboxError

PACKAGES = {  # a command of each package
    "slurm-wlm": "slurmctld",
    "slurmdbd": "slurmdbd",
    "munge": "munged",
    "mariadb-server": "mariadbd",
    "iproute2": "ip",
}
ACCOUNTING = {"slurmdbd", "mariadb-server"}
LIMIT_SECONDS = 900
PATH = "/usr/sbin:/sbin:" + os.environ.get("PATH", "/usr/bin:/bin")  # a plain user's may lack the daemons


def missing_packages(accounting: bool, namespaces: bool) -> list[str]:
    unneeded = (set() if accounting else ACCOUNTING) | (set() if namespaces else {"iproute2"})
    return [name for name, command in PACKAGES.items() if name not in unneeded and not find(command)]


def find(command: str) -> str | None:
    return shutil.which(command, path=PATH)


def install(packages: list[str]) -> None:
    """Install Debian packages as root or through sudo; say which."""
    as_root = [] if os.geteuid() == 0 else ["sudo", "-n"]
    if not shutil.which("apt-get") or (as_root and not shutil.which("sudo")):
        raise SandboxError(
            f"missing on this machine (Debian's names): {' '.join(packages)}; install them and run this again",
            code=2,
        )
    print(f"installing {' '.join(packages)} (apt-get)", flush=True)
    quietly = {"timeout": LIMIT_SECONDS, "capture_output": True, "text": True}
    # The daemons that come with the packages are not wanted: a sandbox starts its own.
    command = ["env", "DEBIAN_FRONTEND=noninteractive", "RUNLEVEL=1", "apt-get"]
    subprocess.run([*as_root, *command, "update", "-qq"], **quietly)  # type: ignore[call-overload]
    options = ["install", "-y", "-qq", "--no-install-recommends"]
    done = subprocess.run([*as_root, *command, *options, *packages], **quietly)  # type: ignore[call-overload]
    if done.returncode:
        raise SandboxError(f"apt-get could not install {' '.join(packages)}: {done.stderr.strip()}", code=2)
