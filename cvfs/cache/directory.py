"""The cache directory itself: where it is, whose it is, and whether it can be written."""

import contextlib
import errno
import os
import shutil
import stat
import threading
from pathlib import Path

from cvfs.errors import CacheError, CacheFullError, ConfigError

LAYOUT = 1
"""The version of the layout below the directory; a directory of another version is left alone and refused."""

_MARKER = "CVFS-CACHE"
_PINS = "pins"
_RETIRED = ".old-"


class CacheDirectory:
    """A directory that is ours: made if missing, mode 0700, so that no other user can feed or read the cache.

    One that cannot be written still reads. Raises ConfigError if the directory is another user's, open to others, not
    a directory, or of another layout.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._create()
        self._check_owner()
        self._check_marker()

    @property
    def writable(self) -> bool:
        """Whether files may be made in it now, unless the disk is full."""
        return os.access(self.path, os.W_OK | os.X_OK)

    def make(self, below: bytes) -> None:
        """Make a directory below this one; what makes this one a cache as well, if it was removed. Raises OSError."""
        marker = self.path / _MARKER
        if not marker.exists():
            self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
            _write_marker(marker)
        os.makedirs(below, mode=0o700, exist_ok=True)

    def _create(self) -> None:
        try:
            self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
        except FileExistsError:
            raise ConfigError(f"the cache {self.path} is not a directory: name another with --cache") from None
        except OSError as error:
            if not os.path.isdir(self.path):
                why = f"cannot make the cache {self.path}: {error.strerror}"
                raise ConfigError(f"{why}: name another with --cache") from None

    def _check_owner(self) -> None:
        try:
            status = os.stat(self.path)
        except OSError as error:
            raise ConfigError(f"cannot use the cache {self.path}: {error.strerror}") from None
        if status.st_uid != os.geteuid():
            raise ConfigError(f"the cache {self.path} belongs to uid {status.st_uid}: name another with --cache")
        if stat.S_IMODE(status.st_mode) & 0o022:
            raise ConfigError(f"others may write to the cache {self.path}: chmod go-w it, or name another with --cache")

    def _check_marker(self) -> None:
        marker = self.path / _MARKER
        try:
            found = marker.read_text("ascii", "replace").strip()
        except FileNotFoundError:
            self._mark(marker)
            return
        except OSError as error:
            raise ConfigError(f"cannot read the cache {self.path}: {error.strerror}") from None
        if found == str(LAYOUT):
            return
        if found.isascii() and found.isdecimal() and int(found) > LAYOUT:
            newer = f"has layout {found[:20]}, which is newer than {LAYOUT}"
            raise ConfigError(f"the cache {self.path} {newer}: name another with --cache")
        self._mend(marker, is_older=found.isdecimal())

    def _mend(self, marker: Path, *, is_older: bool) -> None:
        """Go on with a cache of an older layout, or one whose marker was torn when the power failed."""
        with contextlib.suppress(OSError):
            if is_older:
                self._retire()
            _write_marker(marker)

    def _retire(self) -> None:
        """Move what an older version has stored out of the way, and remove it in the background: it can be had anew."""
        old = self.path / f"{_RETIRED}{os.urandom(4).hex()}"
        old.mkdir(mode=0o700)
        for entry in os.listdir(self.path):
            if entry not in (_MARKER, _PINS) and not entry.startswith(_RETIRED):
                (self.path / entry).rename(old / entry)
        threading.Thread(target=shutil.rmtree, args=(old, True), daemon=True).start()

    def _mark(self, marker: Path) -> None:
        with contextlib.suppress(OSError):
            foreign = [entry for entry in os.listdir(self.path) if entry != _MARKER]
            # What stands beside a marker came after it: another process was here first, just now.
            if foreign and not marker.exists():
                raise ConfigError(f"{self.path} is not a cache and not empty: name another with --cache")
            _write_marker(marker)


def _write_marker(marker: Path) -> None:
    marker.write_text(f"{LAYOUT}\n", "ascii")


def as_cache_error(what: str, error: OSError) -> CacheError:
    kind = CacheFullError if error.errno in (errno.ENOSPC, errno.EDQUOT) else CacheError
    return kind(f"{what}: {error.strerror or error}")
