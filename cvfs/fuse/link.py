"""What the processes of a mount say to each other: one JSON object a datagram, descriptors beside it.

Imports as little as can be: the supervisor is to stay small, and a mount to start fast.
"""

import json
import os
import socket
from typing import Any, Final

FUSE: Final = "fuse"
"""The name under which descriptors of /dev/fuse are held: "fuse0", "fuse1"..."""

LISTENER: Final = "control"
"""The name of the listening control socket."""

MAX_BYTES = 160 << 10
"""Of a datagram: below the kernel's usual limit of 208 KiB, above a manifest of 64 KiB in base64."""

MAX_DESCRIPTORS = 64

Message = dict[str, Any]


def pair() -> tuple[socket.socket, socket.socket]:
    """Two ends of a connection that keeps messages apart and says when the other end is gone."""
    return socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)


def send(connection: socket.socket, message: Message, descriptors: dict[str, int] | None = None) -> bool:
    """False if the other end is gone or does not read, or the message is too large."""
    named = descriptors or {}
    data = json.dumps(message | {"descriptors": list(named)}).encode()
    if len(data) > MAX_BYTES:
        return False
    try:
        socket.send_fds(connection, [data], list(named.values()), socket.MSG_DONTWAIT)
    except OSError:
        return False
    return True


def receive(connection: socket.socket) -> Message | None:
    """The next message, its "descriptors" by name; None if the other end is gone. Raises BlockingIOError."""
    try:
        data, numbers, _, _ = socket.recv_fds(connection, MAX_BYTES, MAX_DESCRIPTORS)
    except ConnectionError:
        return None
    for number in numbers:
        os.set_inheritable(number, False)
    if not data:
        return None
    message: Message = json.loads(data)
    message["descriptors"] = dict(zip(message["descriptors"], numbers, strict=True))
    return message
