"""A machine booted with systemd as its first process: the host's own files below an overlay, nothing of it kept."""

import contextlib
import os
import signal
import subprocess
from pathlib import Path

from tests.e2e.host import INTERPRETER, ROOT, TOKEN, run, wait_until
from tests.mounts import OF_THIS_HOST, USUAL_MOUNT

_DEADLINE_S = 60.0
_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_UP = (b"running\n", b"degraded\n")

LET_GO = """
for point in $(awk '$3 ~ /^fuse/ { print $2 }' /proc/self/mounts); do umount --lazy "$(printf %b "$point")"; done
"""
"""In a mount namespace of one's own: the copies of others' mounts, which would not end as long as it is there."""

_START = f"""{LET_GO}
mount -t tmpfs tmpfs "$1"
mkdir "$1/upper" "$1/work" "$1/root"
mount -t overlay overlay -o "lowerdir=/,upperdir=$1/upper,workdir=$1/work" "$1/root"
for path in {" ".join(map(str, (USUAL_MOUNT, *OF_THIS_HOST)))}; do rm -rf "$1/root$path"; done
shift
exec systemd-nspawn "$@"
"""
"""What is removed is removed from the overlay: a machine on which cvfs was never used."""


class Booted:
    """Call it to run a command in it. It sees `top` and the network of the host; its /etc, /var and /run are its own.

    Whatever runs in it ends with it, and nothing of what it wrote stays.
    """

    def __init__(self, top: Path) -> None:
        self._top = top
        machine = top / "machine"
        machine.mkdir()
        words = [f"--bind={path}" for path in ("/dev/fuse", "/dev/autofs") if Path(path).exists()]
        # Not to be written to: a machine that boots cleans up its /tmp, where they may be.
        words += [f"--bind-ro={path}" for path in {*INTERPRETER, ROOT, top}]
        words += [f"--directory={machine}/root", "--quiet", "--keep-unit", "--register=no", "--link-journal=no"]
        shell = ["unshare", "--mount", "--propagation", "private", "sh", "-euc", _START, "sh", machine]
        with open(top / "boot.log", "wb") as log:
            self._nspawn = subprocess.Popen(
                [*shell, *words, "--boot", "--", "--unit=basic.target"],  # the services of the host are no part of it
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env={"PATH": _PATH, TOKEN: str(top)},
            )
        try:
            wait_until(lambda: self._leader() is not None, _DEADLINE_S)
            wait_until(self._is_up, _DEADLINE_S)
        except BaseException:
            self.close()
            raise

    def _leader(self) -> int | None:
        """The first process of the machine, as the host numbers it."""
        assert self._nspawn.poll() is None, "the machine did not boot: see boot.log"
        children = Path(f"/proc/{self._nspawn.pid}/task/{self._nspawn.pid}/children").read_text().split()
        return int(children[0]) if children else None

    def _is_up(self) -> bool:
        return self("systemctl", "is-system-running", check=False).stdout in _UP

    def __call__(self, *words: str | Path, check: bool = True) -> subprocess.CompletedProcess[bytes]:
        """Run a command in it, with nothing of the test's environment."""
        enter = ("nsenter", "--target", str(self._leader()), "--all", "--")
        return run(*enter, *words, check=check, env={"PATH": _PATH, "HOME": "/root", "LANG": "C.UTF-8"})

    def write(self, path: str, text: str) -> None:
        """Make a file in it, and the directories above."""
        script = 'mkdir -p "$(dirname "$1")" && printf %s "$2" > "$1"'
        self("sh", "-c", script, "sh", path, text)

    def journal(self) -> str:
        return self("journalctl", "--no-pager", "--output=cat").stdout.decode(errors="replace")

    def close(self) -> None:
        """End it at once; its journal stays below `top`, for who looks into a failure."""
        if self._nspawn.poll() is None:
            with contextlib.suppress(AssertionError):
                (self._top / "journal.log").write_text(self.journal())
            leader = self._leader()
            os.kill(leader or self._nspawn.pid, signal.SIGKILL)
        self._nspawn.wait(_DEADLINE_S)
