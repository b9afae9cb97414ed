"""The one exception tree: what can go wrong, told apart by who has to act.

Lower layers raise, upper layers decide. The file system answers every `CvfsError` with an errno (one table, in
`cvfs.fuse.errno_table`); the command lines answer with the error's text in one line and a non-zero exit status.
"""

import errno
import os


class CvfsError(Exception):
    """Every error that cvfs raises on purpose. Its text is one line, fit for a user."""


class PathError(CvfsError):
    """The answer to a question about a path is an errno: ENOENT, ENOTDIR, EISDIR, EROFS, ENODATA, ELOOP..."""

    def __init__(self, number: int, path: bytes | str = b"") -> None:
        super().__init__(number, path)
        self.errno, self._path = number, path
        self.lasting_s: float | None = None
        """For how long this answer may be believed; None: as long as the revision is the same."""

    def __str__(self) -> str:
        """Made only when somebody wants to read it: each name that is not there is such an error."""
        shown = os.fsdecode(self._path)
        return f"{os.strerror(self.errno)}: {shown!r}" if shown else os.strerror(self.errno)


class StaleInodeError(PathError):
    """An inode number that no page ever taken in has explained."""

    def __init__(self, inode: int) -> None:
        super().__init__(errno.ESTALE, f"inode {inode:#x}")


class FormatError(CvfsError):
    """Bytes whose hash was right, or a local file, do not say what docs/format.md allows: the writer is to blame."""


class IntegrityError(CvfsError):
    """Bytes are not the ones that were named: whoever stored or carried them is to blame.

    `wanted` and `got` are ids in hexadecimal, or sizes; `source` is the address or file they came from.
    """

    def __init__(self, wanted: str, got: str, source: str) -> None:
        super().__init__(f"wrong bytes from {source}: wanted {wanted}, got {got}")
        self.wanted, self.got, self.source = wanted, got, source


class TrustError(CvfsError):
    """Metadata that is not signed as the repository's root of trust demands."""


class ExpiredError(TrustError):
    """Metadata that was signed as demanded, but for a time that has passed."""


class TransportError(CvfsError):
    """A server did not deliver. `url` is what was asked for; `retryable` says if asking again may help."""

    retryable = True

    def __init__(self, url: str, reason: str) -> None:
        super().__init__(f"{reason}: {url}")
        self.url, self.reason = url, reason


class UnreachableError(TransportError):
    """No connection: name not found, refused, reset, TLS handshake failed."""


class ProxyError(UnreachableError):
    """The HTTP proxy on the way is to blame: no connection to it, or it refuses this client. `proxy` is its address."""

    def __init__(self, url: str, proxy: str, reason: str) -> None:
        super().__init__(url, f"proxy {proxy}: {reason}")
        self.proxy = proxy


class StatusError(TransportError):
    """The server answered, but not with the object: an HTTP status other than 200.

    `retry_after_s` is how long it asks to be left alone, None if it does not say.
    """

    def __init__(self, url: str, status: int, reason: str = "", retry_after_s: float | None = None) -> None:
        super().__init__(url, f"HTTP {status} {reason}".rstrip())
        self.status, self.retry_after_s = status, retry_after_s
        self.retryable = status in (408, 425, 429) or status >= 500


class TruncatedError(TransportError):
    """The body ended before the announced or demanded number of bytes."""


class TooLargeError(TransportError):
    """The body is larger than the caller allows; the rest was not read."""

    retryable = False


class TooSlowError(TransportError):
    """The deadline passed before the body was complete; `received_bytes` of it had come (0: a server that hangs).

    `asked` is false if the server never was, because all connections were busy until then.
    """

    def __init__(self, url: str, reason: str, received_bytes: int = 0, *, asked: bool = True) -> None:
        super().__init__(url, reason)
        self.received_bytes, self.asked = received_bytes, asked


class CacheError(CvfsError):
    """The local cache failed (disk full, not writable, broken). Whatever was to be cached may still be served."""


class CacheFullError(CacheError):
    """There is no room in the local cache: its disk is full, or its limit is reached and nothing may be evicted."""


class ConfigError(CvfsError):
    """A setting, an option or an argument that cannot be obeyed. Reaches only the command line."""


class MountError(CvfsError):
    """The kernel, or the state of the mount point, does not allow the mount. Reaches only the command line."""


class PartialError(CvfsError):
    """Of work on many files some failed, and each was told of. Reaches only the command line."""


class StoreError(CvfsError):
    """A publisher's store cannot be read or written, is not a store, or its head was moved by someone else."""


class PublishError(CvfsError):
    """A tree cannot be published as it is: unreadable file, changed while it was read, name or size over a limit."""
