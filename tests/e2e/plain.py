"""What a plain user has of this host: no capability, no way to one, a home, and what everybody may read."""

import contextlib
import os
import subprocess
from pathlib import Path
from typing import Any

from tests.e2e.booted import LET_GO
from tests.e2e.host import INTERPRETER, ROOT, TOKEN, kill, processes_of, run, trust

UID, GID = 61234, 61235
"""Of nobody here: he has no name either."""

_BEGIN = f"""{LET_GO}
hidden=$1
shift
mount -t tmpfs tmpfs /mnt
mknod --mode=0666 /mnt/fuse c 10 229
mount --bind /mnt/fuse /dev/fuse
for program in $hidden; do
    for path in $(which -a "$program"); do mount --bind /dev/null "$path"; done
done
count=0
for path; do
    count=$((count + 1))
    mkdir /mnt/$count
    mount --bind "$path" /mnt/$count
done
for path; do
    while [ "$path" != / ]; do
        path=$(dirname "$path")
        mode=$(stat --format=%a "$path")
        [ $((0$mode & 1)) = 1 ] || mount -t tmpfs -o mode=0755 tmpfs "$path"
    done
done
count=0
for path; do
    count=$((count + 1))
    mkdir -p "$path"
    mount --bind /mnt/$count "$path"
    umount /mnt/$count
done
umount --lazy /mnt
echo ready
exec cat
"""
"""Directories that others cannot enter are covered, and show nothing but what is named."""


class Plain:
    """Call it to run a command as a plain user, in his home below `top`. Whatever he does, no capability comes of it.

    `hidden` are programs that this host does not have for him. What his processes have is in `/proc`, to be looked into
    by who is root.
    """

    def __init__(self, top: Path, hidden: tuple[str, ...] = ()) -> None:
        self.top, self.home = top, top / "home"
        top.chmod(0o755)
        for path in (self.home, self.home / "run"):
            path.mkdir()
            os.chown(path, UID, GID)
        self.environment = {
            "PATH": "/usr/bin:/bin",
            "HOME": str(self.home),
            "LANG": "C.UTF-8",
            "XDG_RUNTIME_DIR": str(self.home / "run"),
            "CVFS_ROOT": str(top / "root.json"),
            "PYTHONPATH": str(ROOT),
            "PYTHONDONTWRITEBYTECODE": "1",
            TOKEN: str(self.home),
        }
        (top / "root.json").write_bytes(trust().root.read_bytes())
        shown = {*INTERPRETER, str(ROOT), str(top)}
        self._holder = subprocess.Popen(
            ["unshare", "--mount", "--propagation", "private", "sh", "-euc", _BEGIN, "sh", " ".join(hidden), *shown],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={"PATH": os.environ["PATH"]},
        )
        assert self._holder.stdout is not None
        assert self._holder.stdout.readline() == b"ready\n"

    def line(self, *words: str | Path, directory: Path | None = None) -> list[str | Path]:
        """A command line of root's that becomes the command of the plain user; so does its process."""
        enter = ["nsenter", f"--mount=/proc/{self._holder.pid}/ns/mnt", "env", f"--chdir={directory or self.home}"]
        ids = [f"--reuid={UID}", f"--regid={GID}", "--clear-groups", "--bounding-set=-all", "--no-new-privs"]
        return [*enter, "setpriv", *ids, "--", *words]

    def __call__(
        self,
        *words: str | Path,
        check: bool = True,
        directory: Path | None = None,
        timeout_s: float = 60.0,
        **environment: str,
    ) -> subprocess.CompletedProcess[bytes]:
        """The outcome of a command, with `environment` added to his."""
        line = self.line(*words, directory=directory)
        return run(*line, check=check, timeout_s=timeout_s, env=self.environment | environment)

    def start(self, *words: str | Path, **options: Any) -> subprocess.Popen[bytes]:
        """A command that runs beside the test."""
        return subprocess.Popen(self.line(*words), env=self.environment, **options)

    def left(self) -> list[str]:
        """What is there of his commands: processes, sockets, mounts."""
        sockets = [str(path) for path in (self.home / "run").rglob("*") if not path.is_dir()]
        return [*processes_of(self.home).values(), *sockets, *self._mounts()]

    def _mounts(self) -> list[str]:
        lines = Path(f"/proc/{self._holder.pid}/mountinfo").read_text().splitlines()
        return [line for line in lines if " - fuse" in line]

    def close(self) -> None:
        """End everything; raises if something could only be ended by force."""
        left = processes_of(self.home)
        for pid in left:
            with contextlib.suppress(ProcessLookupError):  # it has ended with one of the others
                kill(pid)
        self._end()
        assert not left, f"left behind: {left}"

    def _end(self) -> None:
        assert self._holder.stdin is not None
        assert self._holder.stdout is not None
        self._holder.stdin.close()
        self._holder.wait(10)
        self._holder.stdout.close()
