from __future__ import annotations

import socket

import pytest

from jobs.container.consumer import announce_claim
from tests.support.containers.container import free_port


def accepts(host: str, port: int) -> bool:
    try:
        socket.create_connection((host, port), timeout=2).close()
    except OSError:
        return False
    return True


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_a_probe_of_either_family_finds_the_port_bound_until_it_is_closed(host: str) -> None:
    if host == "::1" and not socket.has_dualstack_ipv6():
        pytest.skip("this machine has no IPv6")
    port = free_port()
    assert not accepts(host, port)
    with announce_claim(port):
        assert accepts(host, port)
    assert not accepts(host, port)


def test_without_ipv6_the_port_is_bound_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket, "has_dualstack_ipv6", lambda: False)
    port = free_port()
    with announce_claim(port) as listener:
        assert listener.family is socket.AF_INET
        assert accepts("127.0.0.1", port)


@pytest.mark.parametrize("host", ["", "127.0.0.1"])
def test_a_port_that_is_taken_is_an_error(host: str) -> None:
    with socket.create_server((host, 0)) as taken, pytest.raises(OSError, match="in use"):
        announce_claim(taken.getsockname()[1])
