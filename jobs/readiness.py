"""Readiness: the port is bound exactly while this container holds its message.

KEDA counts a Job as pending until its pod is Ready, so a container that starts up, or waits as a
spare, stands for one waiting message. A tcpSocket probe costs no process in the container.
"""

from __future__ import annotations

import socket


def announce_claim(port: int) -> socket.socket:
    """Listen on the port until the socket is closed or the process ends."""
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.bind(("", port))
    # Nobody accepts: the kernel completes a probe's handshake. One probe a second fills this
    # backlog after activeDeadlineSeconds is over.
    listener.listen(1024)
    return listener
