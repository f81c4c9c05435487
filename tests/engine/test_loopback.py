"""Several hosts on a loopback address are refused at once; several nodes on one host are not."""

from __future__ import annotations

import json
import os
import socket

import pytest
import torch.distributed as dist

from kapdist.engine import loopback
from kapdist.engine.loopback import Host, check, loopback_address, loopback_device, refuse_loopback, this_host
from kapdist.errors import InputError


@pytest.mark.parametrize(
    ("mine", "first", "named"),
    [
        (Host("a", "n1", "127.0.1.1"), Host("a", "n2", "127.0.1.1"), ""),  # two nodes of a sandbox
        (Host("a", "n1", ""), Host("b", "n2", ""), ""),
        (Host("a", "n1", "127.0.1.1"), Host("b", "n2", ""), "127.0.1.1 on n1"),
        (Host("a", "n1", ""), Host("b", "n2", "lo"), "lo on n2"),
    ],
)
def test_which_hosts_cannot_meet(mine: Host, first: Host, named: str) -> None:
    if not named:
        check(mine, first)
        return
    with pytest.raises(InputError) as error:
        check(mine, first)
    assert str(error.value).startswith("environment variable GLOO_SOCKET_IFNAME: expected the network interface")
    assert f"found {named}" in str(error.value)


def test_rank_0_tells_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    store = dist.HashStore()
    refuse_loopback(0, store)
    refuse_loopback(1, store)  # of this very host, whatever its name stands for
    monkeypatch.setattr(loopback, "this_host", lambda _: Host("elsewhere", "n2", "127.0.1.1"))
    with pytest.raises(InputError, match=r"127\.0\.1\.1 on n2"):
        refuse_loopback(1, store)
    assert json.loads(store.get(loopback.KEY))[0] == this_host(os.environ).network


def test_what_gloo_would_take(monkeypatch: pytest.MonkeyPatch) -> None:
    assert loopback_address("localhost") in {"127.0.0.1", "::1"}
    assert loopback_address("no such host.invalid") == "127.0.0.1"
    assert loopback_device("lo") == "lo"
    assert loopback_device("ib0") == ""
    assert this_host({"GLOO_SOCKET_IFNAME": "lo"}).loopback == "lo"
    own, foreign = ("10.1.2.3", 0), ("192.0.2.1", 0)  # the second is nobody's

    class Socket(socket.socket):
        def bind(self, address: tuple[str, int]) -> None:
            if address[0] != own[0]:
                raise OSError("not mine")

    answer = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", address) for address in (foreign, own)]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: answer)
    monkeypatch.setattr(socket, "socket", Socket)
    assert loopback_address("n1") == ""
