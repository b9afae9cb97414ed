"""What is trusted of a repository, as it is kept between one start and the next: one file, replaced as a whole."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import msgspec
from msgspec import Meta

from cvfs import flock
from cvfs.errors import ConfigError, FormatError
from cvfs.trust.values import Bundle, Chain

FILE = "trusted.json"
_FORMAT = 1
_MAX_BYTES = 16 << 20
_REMEDY = "name another directory with --state-dir"
_LOCK_DEADLINE_S = flock.DEADLINE_S


class Trusted(msgspec.Struct, frozen=True):
    """A state that has verified to the end. Metadata and manifest are the text that was signed.

    `origin` says for people how its first root came to be trusted; `root_ids` are the SHA-256 of all roots from that
    one on. `expires_s` is when it becomes stale, in seconds since 1970. `etag` is what a mirror called the timestamp.
    """

    repository: str
    origin: str
    root_ids: tuple[str, ...]
    root: str
    timestamp: str
    snapshot: str
    targets: str
    manifest: str
    root_version: int
    timestamp_version: int
    expires_s: int
    etag: str | None = None
    format: Annotated[int, Meta(ge=_FORMAT, le=_FORMAT)] = _FORMAT

    @property
    def bundle(self) -> Bundle:
        """Its metadata as bytes."""
        return Bundle(self.root.encode(), self.timestamp.encode(), self.snapshot.encode(), self.targets.encode())

    @property
    def age(self) -> tuple[int, int]:
        """Greater for the newer of two states."""
        return self.root_version, self.timestamp_version


def make_trusted(chain: Chain, manifest: bytes, origin: str, root_ids: tuple[str, ...], etag: str | None) -> Trusted:
    """The state of a chain that has verified, and whose manifest is `manifest`."""
    bundle = chain.bundle
    return Trusted(
        repository=chain.repository,
        origin=origin,
        root_ids=root_ids,
        root=bundle.root.decode(),
        timestamp=bundle.timestamp.decode(),
        snapshot=bundle.snapshot.decode(),
        targets=bundle.targets.decode(),
        manifest=manifest.decode(),
        root_version=chain.root_version,
        timestamp_version=chain.timestamp_version,
        expires_s=chain.expires_s,
        etag=etag,
    )


def check_owner(directory: Path) -> None:
    """Raise ConfigError if somebody else may write to `directory`, to the one that it is in, or to the state in it, as
    far as they are there: who can, decides what is trusted."""
    for path in (directory.parent, directory, directory / FILE):
        try:
            status = os.stat(path)
        except OSError:
            return
        if status.st_uid not in (os.geteuid(), 0):
            raise ConfigError(f"{path} belongs to uid {status.st_uid}, who could decide what is trusted: {_REMEDY}")
        if status.st_mode & 0o022:
            raise ConfigError(f"others may write to {path}, and decide what is trusted: chmod go-w it, or {_REMEDY}")


def load(directory: Path) -> Trusted | None:
    """The state kept in `directory`, None if there is none. Raises OSError, FormatError."""
    try:
        with open(directory / FILE, "rb") as file:
            data = file.read(_MAX_BYTES)
    except FileNotFoundError:
        return None
    try:
        return msgspec.json.decode(data, type=Trusted)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise FormatError(f"not a trusted state: {error}") from error


def store(directory: Path, trusted: Trusted) -> None:
    """Keep `trusted`, unless another process has kept something newer meanwhile. Durable, whole or not at all.

    Raises OSError, TimeoutError among them: another process, which may be frozen or hang in its disk, is just doing it.
    """
    for path in (directory.parent, directory):
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
    with _locked(directory):
        try:
            kept = load(directory)
        except FormatError:
            kept = None
        if kept is not None and kept.root_ids[0] == trusted.root_ids[0] and kept.age > trusted.age:
            return
        _replace(directory, msgspec.json.format(msgspec.json.encode(trusted), indent=1))


def _replace(directory: Path, data: bytes) -> None:
    temporary = directory / f".{FILE}-{os.getpid()}"
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    with open(descriptor, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    temporary.rename(directory / FILE)


@contextmanager
def _locked(directory: Path) -> Iterator[None]:
    """One process at a time, and never longer than it lives."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        flock.wait_lock(descriptor, _LOCK_DEADLINE_S)
        yield
    finally:
        os.close(descriptor)
