"""Two network namespaces joined by a veth pair: one per node, each with an address of its own."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

from sandbox.configuration import hosts
from sandbox.settings import NODES, SandboxError, Settings, enter

INTERFACE = "eth0"
NETNS = Path("/run/netns")
ETC_NETNS = Path("/etc/netns")  # `ip netns exec NAME` puts the files of /etc/netns/NAME over those of /etc
LIMIT_SECONDS = 20


def ip(*words: str) -> None:
    """Run `ip`; its own words become the error."""
    done = subprocess.run(["ip", *words], capture_output=True, text=True, timeout=LIMIT_SECONDS)
    if done.returncode:
        raise SandboxError(f"ip {' '.join(words)}: {done.stderr.strip() or done.stdout.strip()}")


def create_namespaces(settings: Settings) -> None:
    for node, name in zip(NODES, settings.namespaces, strict=True):
        ip("netns", "add", name)
        folder = ETC_NETNS / name
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "hosts").write_text(hosts(settings, node))
    one, other = settings.namespaces
    ip("link", "add", INTERFACE, "netns", one, "type", "veth", "peer", "name", INTERFACE, "netns", other)
    for node, name in zip(NODES, settings.namespaces, strict=True):
        ip("-n", name, "address", "add", f"{settings.addresses[node]}/24", "dev", INTERFACE)
        ip("-n", name, "link", "set", "lo", "up")
        ip("-n", name, "link", "set", INTERFACE, "up")


def remove_namespaces(settings: Settings) -> list[str]:
    """Remove what there is of a sandbox's namespaces; the veth pair goes with them. Return their names."""
    present = [name for name in settings.namespaces if (NETNS / name).exists()]
    for name in present:
        ip("netns", "delete", name)
    for name in settings.namespaces:
        shutil.rmtree(ETC_NETNS / name, ignore_errors=True)
    return present


def set_link(settings: Settings, state: str) -> None:
    """Cut ("down") or mend ("up") the link between the two nodes."""
    if not settings.namespaces:
        raise SandboxError("this sandbox has no link to cut: it was made without --namespaces", code=2)
    ip("-n", settings.namespaces[1], "link", "set", INTERFACE, state)


def on_node(settings: Settings, node: str) -> list[str]:
    """What comes before a command that shall run on a node: its namespace, and its name as the host's name."""
    if not settings.namespaces:
        return []
    as_node = ["unshare", "--uts", "sh", "-c", f'hostname {node} && exec "$@"', "sh"]
    return [*enter(settings.namespaces[NODES.index(node)]), *as_node]
