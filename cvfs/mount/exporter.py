"""Where metrics are read: a unix or TCP socket that speaks HTTP, or a file that is written now and then.

One mount of a user answers for all; when it ends, another takes over.
"""

import contextlib
import fcntl
import hashlib
import logging
import os
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Final

import trio

from cvfs.config.notation import write_atomically
from cvfs.errors import ConfigError
from cvfs.mount.metrics import CONTENT_TYPE, exposition
from cvfs.mount.overview import list_mounts
from cvfs.mount.runtime import Runtime

log = logging.getLogger(__name__)

_WRITE_S: Final = 15.0
"""How old a file of metrics can be: as often as Prometheus asks by default."""

_TURN_S: Final = 2.0
"""How often a mount looks whether it has to answer for the others."""

_NOT_ALLOWED: Final = (
    b"HTTP/1.1 405 Method Not Allowed\r\nAllow: GET, HEAD\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
)

_DEADLINE_S: Final = 10.0
_MAX_REQUEST_BYTES: Final = 16 << 10


async def export(address: str, runtime: Runtime) -> None:
    """Have metrics at `address` (unix:PATH, HOST:PORT or textfile:PATH) until cancelled, as soon as no other process
    of this user has. Where that cannot be, it is logged, and tried again."""
    complaint = ""
    while True:
        try:
            async with _turn(address, runtime):
                await _export(address, runtime)
        except (OSError, ConfigError) as error:
            if str(error) != complaint:
                complaint = str(error)
                log.warning("no metrics at %s: %s", address, complaint)
        await trio.sleep(_WRITE_S)


@asynccontextmanager
async def _turn(address: str, runtime: Runtime) -> AsyncIterator[None]:
    """Wait until this process is the one that answers, and be it. Raises OSError: the runtime directory is gone."""
    name = f"metrics-{hashlib.sha256(os.fsencode(address)).hexdigest()[:16]}.lock"
    descriptor = os.open(runtime.directory / name, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        await _lock(descriptor)
        yield
    finally:
        os.close(descriptor)


async def _lock(descriptor: int) -> None:
    while True:
        try:
            return fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            await trio.sleep(_TURN_S)


async def _export(address: str, runtime: Runtime) -> None:
    kind, _, place = address.partition(":")
    if kind == "textfile":
        await _write(Path(place), runtime)
    elif kind == "unix":
        with _listener(Path(place)) as listener:
            await trio.serve_listeners(partial(_answer, runtime), [listener])
    else:
        host, _, port = address.rpartition(":")
        await trio.serve_tcp(partial(_answer, runtime), int(port), host=host.strip("[]"))


async def _write(path: Path, runtime: Runtime) -> None:
    """Old news would be taken for good ones: the file goes when nobody writes it any more."""
    try:
        while True:
            await trio.to_thread.run_sync(_replace, path, await _metrics(runtime))
            await trio.sleep(_WRITE_S)
    finally:
        with contextlib.suppress(OSError):
            os.unlink(path)


def _replace(path: Path, data: bytes) -> None:
    """Who reads it is another user, and a daemon's umask keeps those out of what it makes. Raises OSError,
    ConfigError."""
    for directory in reversed([each for each in path.parents if not each.exists()]):
        directory.mkdir()
        directory.chmod(0o755)
    write_atomically(path, data)


@contextlib.contextmanager
def _listener(path: Path) -> Iterator[trio.SocketListener]:
    """A unix socket. Who may enter its directory may ask, as anybody of this host may with TCP."""
    if path.is_socket():
        path.unlink()  # of a process that is gone: it is the turn of this one
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        try:
            path.chmod(0o666)
            listener.listen()
            listener.setblocking(False)
            yield trio.SocketListener(trio.socket.from_stdlib_socket(listener))
        finally:
            path.unlink(missing_ok=True)


async def _answer(runtime: Runtime, stream: trio.SocketStream) -> None:
    """Whatever path is asked for, it has the metrics. A client that does not read them is left after some seconds."""
    with trio.move_on_after(_DEADLINE_S), contextlib.suppress(trio.BrokenResourceError):
        request = b""
        while b"\r\n\r\n" not in request and len(request) < _MAX_REQUEST_BYTES:
            data = await stream.receive_some()
            if not data:
                return
            request += data
        method = request.partition(b" ")[0]
        if method not in (b"GET", b"HEAD"):
            await stream.send_all(_NOT_ALLOWED)
            await _let_finish(stream)
            return
        body = await _metrics(runtime)
        head = f"HTTP/1.1 200 OK\r\nContent-Type: {CONTENT_TYPE}\r\nContent-Length: {len(body)}\r\n"
        await stream.send_all(head.encode() + b"Connection: close\r\n\r\n" + (body if method == b"GET" else b""))


async def _let_finish(stream: trio.SocketStream) -> None:
    """Closed before all was read, a connection is reset, and what was answered is lost."""
    await stream.send_eof()
    for _ in range(_MAX_REQUEST_BYTES):
        if not await stream.receive_some():
            return


async def _metrics(runtime: Runtime) -> bytes:
    mounts = await trio.to_thread.run_sync(list_mounts, runtime, abandon_on_cancel=True)
    return exposition(mounts)
