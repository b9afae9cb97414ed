"""The mount point before a mount: checked, and freed of a mount whose process died."""

import logging
import os
import re
import threading
from pathlib import Path
from typing import Final

from cvfs.fuse.kernel import DEAD, SUBTYPE, check_mount_point, unmount
from cvfs.fuse.mountinfo import MountInfo, find_mount, parse_mounts

log = logging.getLogger(__name__)

_PATIENCE_S = 2.0
_USER: Final = re.compile(rb"[ ,]user_id=([0-9]+)(?:,|$)")


def prepare_mount_point(directory: Path, *, nonempty: bool) -> None:
    """Raises MountError unless `directory` can be mounted on now. A dead cvfs mount on it is taken away first."""
    mounted = find_mount(directory)
    if mounted is not None and is_ours(mounted) and is_dead(directory):
        log.warning("taking away the mount of %s on %s, whose process is gone", mounted.source, directory)
        unmount(directory, lazy=True)
    if not (nonempty and find_mount(directory) is None and directory.is_dir()):
        check_mount_point(directory)


def is_ours(mounted: MountInfo) -> bool:
    return mounted.kind == f"fuse.{SUBTYPE}"


def owner_of(mounted: MountInfo) -> int | None:
    """The user who mounted it, by what the kernel says; None if it is gone. Looks at no path."""
    for line in Path("/proc/self/mountinfo").read_bytes().splitlines():
        if parse_mounts(line) == [mounted] and (found := _USER.search(line)):
            return int(found[1])
    return None


def is_dead(directory: Path) -> bool:
    """Whether a mount answers "Transport endpoint is not connected". One that does not answer at all is not dead."""
    with _probing:
        probe = _probes.get(directory)
        if probe is None:
            probe = _probes[directory] = _Probe(directory)
            probe.start()
    probe.join(_PATIENCE_S)
    return probe.error in DEAD


class _Probe(threading.Thread):
    """One question to a mount; `error` is an errno, 0 if it answered, None as long as it has not.

    A thread, because a system call on a mount that hangs cannot be given a deadline.
    """

    def __init__(self, directory: Path) -> None:
        super().__init__(name=f"probe of {directory}", daemon=True)
        self._directory = directory
        self.error: int | None = None

    def run(self) -> None:
        try:
            os.statvfs(self._directory)  # unlike the answer of stat(2), its is never cached
            self.error = 0
        except OSError as error:
            self.error = error.errno
        finally:
            with _probing:
                del _probes[self._directory]


_probing: Final = threading.Lock()
_probes: Final[dict[Path, _Probe]] = {}
"""Those under way: whoever asks meanwhile waits for the same one. A mount that hangs is asked about every few seconds
(each scrape of metrics does), and each question would leave a thread behind."""
