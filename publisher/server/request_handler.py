"""One connection of the embedded HTTP server: which names it knows, and what it answers.

Only files that belong to a store are served: no listing, no other name, no symbolic link in any position.
"""

import errno
import http.server
import os
import re
import socket
import stat
from typing import Protocol

_BLOB = re.compile(r"data/[0-9a-f]{2}/[0-9a-f]{62}")
_HEAD = re.compile(r"metadata/[A-Za-z0-9_-][A-Za-z0-9._-]{0,99}\.json")
# A head is what changes: a cache on the way may keep it this long, then it has to ask.
_HEAD_CACHING = "public, max-age=5, must-revalidate"
_BLOB_CACHING = "public, max-age=31536000, immutable"
_STATUS_OF_ERRNO = {
    errno.ENOENT: 404,
    errno.ENOTDIR: 404,
    errno.ELOOP: 403,  # a symbolic link
    errno.EACCES: 403,
    errno.EPERM: 403,
}


class Served(Protocol):
    """What a connection needs of its server."""

    @property
    def root(self) -> int:
        """A descriptor of the store's directory."""

    @property
    def closing(self) -> bool:
        """Whether this answer has to be the connection's last."""

    def record(self, line: str, sent_bytes: int) -> None:
        """One more request was answered, with a body of `sent_bytes`."""


class StoreHandler(http.server.BaseHTTPRequestHandler):
    """One connection: it answers as it is constructed, request after request, until the connection ends."""

    protocol_version = "HTTP/1.1"
    server: Served  # type: ignore[assignment]

    def __init__(self, connection: socket.socket, address: tuple[str, int], server: Served) -> None:
        super().__init__(connection, address, server)  # type: ignore[arg-type]

    def do_GET(self) -> None:
        if "Content-Length" in self.headers or "Transfer-Encoding" in self.headers:
            self.close_connection = True  # a body is not read, and must not be taken for the next request
        name = self.path.partition("?")[0].removeprefix("/")
        if not (_BLOB.fullmatch(name) or _HEAD.fullmatch(name)):
            return self._refuse(404)
        try:
            descriptor = open_inside(self.server.root, name)
        except OSError as error:
            return self._refuse(_STATUS_OF_ERRNO.get(error.errno or 0, 500))
        try:
            self._answer(name, descriptor)
        finally:
            os.close(descriptor)

    do_HEAD = do_GET  # noqa: N815

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        """What the standard library calls for a request that it refuses: a bad line, a method that we do not have."""
        self.close_connection = True
        self._refuse(405 if code == 501 else code)

    def log_message(self, *_: object) -> None:
        """Nothing: `_finish` logs."""

    def _answer(self, name: str, descriptor: int) -> None:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            return self._refuse(404)
        is_blob = name.startswith("data/")
        etag = f'"{name[5:].replace("/", "")}"' if is_blob else f'"{status.st_mtime_ns:x}-{status.st_ino:x}"'
        headers = f"ETag: {etag}\r\nCache-Control: {_BLOB_CACHING if is_blob else _HEAD_CACHING}\r\n"
        if _matches(self.headers.get("If-None-Match", ""), etag):
            self._send_head(304, headers)
            return self._finish(304, 0)
        kind = "application/octet-stream" if is_blob else "application/json"
        headers += f"Content-Type: {kind}\r\nContent-Length: {status.st_size}\r\n"
        if self.command == "HEAD":
            self._send_head(200, headers)
            return self._finish(200, 0)
        self._send_head(200, headers, socket.MSG_MORE)
        return self._finish(200, self._send_file(descriptor, status.st_size))

    def _refuse(self, code: int) -> None:
        body = f"{code} {self.responses[code][0]}\n".encode()
        headers = f"Content-Type: text/plain\r\nContent-Length: {len(body)}\r\nCache-Control: no-store\r\n"
        self._send_head(code, headers, socket.MSG_MORE)
        self.wfile.write(b"" if self.command == "HEAD" else body)
        self._finish(code, 0)

    def _send_head(self, code: int, headers: str, flags: int = 0) -> None:
        if self.server.closing:
            self.close_connection = True
        if self.close_connection:
            headers += "Connection: close\r\n"
        head = f"HTTP/1.1 {code} {self.responses[code][0]}\r\nDate: {self.date_time_string()}\r\n{headers}\r\n"
        self.connection.sendall(head.encode("latin-1"), flags)

    def _send_file(self, descriptor: int, size_bytes: int) -> int:
        sent_bytes = 0
        while sent_bytes < size_bytes:
            more_bytes = os.sendfile(self.connection.fileno(), descriptor, sent_bytes, size_bytes - sent_bytes)
            if not more_bytes:  # the file has shrunk: only the end of the connection can still tell the client
                self.close_connection = True
                break
            sent_bytes += more_bytes
        return sent_bytes

    def _finish(self, code: int, sent_bytes: int) -> None:
        self.server.record(f"{self.client_address[0]} {self.requestline!r} {code} {sent_bytes}", sent_bytes)


def open_inside(root: int, name: str) -> int:
    """A descriptor of the file `name` below the directory `root`, no link followed. Raises OSError."""
    directory = root
    *parents, last = name.split("/")
    try:
        for parent in parents:
            inner = os.open(parent, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=directory)
            if directory != root:
                os.close(directory)
            directory = inner
        return os.open(last, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=directory)
    finally:
        if directory != root:
            os.close(directory)


def _matches(condition: str, etag: str) -> bool:
    """Whether an If-None-Match header names `etag`; weak comparison, as RFC 9110 wants it here."""
    names = (name.strip().removeprefix("W/") for name in condition.split(","))
    return any(name in (etag, "*") for name in names)
