"""sd_notify(3) without libsystemd: one datagram to the socket that the service manager named."""

import contextlib
import os
import socket


def notify(*lines: str) -> None:
    """Tell the service manager, if there is one."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if address[:1] not in ("/", "@"):
        return
    if address[0] == "@":
        address = "\0" + address[1:]
    with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sender:
        # systemd drops what is not UTF-8, as a path may be.
        sender.sendto("\n".join(lines).encode(errors="backslashreplace"), address)


def watchdog_s() -> float | None:
    """How long the service manager waits for WATCHDOG=1 from this process, if it does (sd_watchdog_enabled(3))."""
    microseconds, pid = os.environ.get("WATCHDOG_USEC", ""), os.environ.get("WATCHDOG_PID", "")
    if not microseconds.isdecimal() or pid not in ("", str(os.getpid())):
        return None
    return int(microseconds) / 1e6 or None
