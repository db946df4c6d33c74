"""Readiness: the port is bound exactly while this container holds its message.

KEDA counts a Job as pending until its pod is Ready, so a container that starts up, or waits as a
spare, stands for one waiting message. A tcpSocket probe costs no process in the container.
"""

from __future__ import annotations

import socket


def announce_claim(port: int) -> socket.socket:
    """Listen on the port until the socket is closed or the process ends."""
    # Nobody accepts: the kernel completes a probe's handshake. One probe a second fills this
    # backlog only when activeDeadlineSeconds is nearly over.
    if socket.has_dualstack_ipv6():
        return socket.create_server(("", port), family=socket.AF_INET6, backlog=1024, dualstack_ipv6=True)
    return socket.create_server(("", port), backlog=1024)
