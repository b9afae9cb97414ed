"""Record what a real kernel says: `python -m tests.fuse.record_session` (as root) writes tests/fuse/data/*.session.

Mounts a StaticTree, lets a second process use it as ls, cat, stat, readlink, getfattr, find and df do, and keeps every
message. Run it again after a change of the tree or of an encoder that a kernel should judge anew.
"""

import contextlib
import errno
import os
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

from cvfs.fuse import kernel
from cvfs.fuse.options import MountOptions
from cvfs.fuse.protocol import codes, notices
from tests.fuse.session_file import NOTICE, REPLY, REQUEST, Message, save
from tests.fuse.static_tree import StaticTree, nodes

ACTIVITY = r"""
import fcntl, os, subprocess, sys, time
os.chdir(sys.argv[1])
def shell(command):
    subprocess.run(command, shell=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=False)
shell("ls; ls -la; find . -type f -printf '%s'; cat hello old; wc -c big; stat link old pipe; readlink link; df .")
shell("stat missing missing; cat link; ls " + "n" * 300)
print(sorted(os.listxattr("hello")), os.getxattr("hello", "user.two"), file=sys.stderr)
for attempt in (lambda: os.getxattr("hello", "user.none"), lambda: os.mkdir("new"), lambda: os.unlink("old")):
    try:
        attempt()
    except OSError as error:
        print(error, file=sys.stderr)
with open("big", "rb") as big:
    print(os.lseek(big.fileno(), 5, os.SEEK_DATA), os.lseek(big.fileno(), 5, os.SEEK_HOLE), file=sys.stderr)
    for offset in (-5, 1 << 40):
        try:
            os.lseek(big.fileno(), offset, os.SEEK_HOLE)
        except OSError as error:
            print(error, file=sys.stderr)
    os.fsync(big.fileno())
    try:
        fcntl.ioctl(big, 0x80086601, bytes(8))
    except OSError as error:
        print(error, file=sys.stderr)
with os.scandir("many") as listing:
    print(len(list(listing)), file=sys.stderr)
directory = os.open(".", os.O_RDONLY)
os.fsync(directory)
os.close(directory)
shell("timeout -s INT 0.2 stat slow")
"""


class Recorder:
    """Serves one mount in a thread of its own and keeps every message."""

    def __init__(self, descriptor: int, tree: StaticTree) -> None:
        self._descriptor, self._tree = descriptor, tree
        self._lock = threading.Lock()
        self.messages: list[Message] = []
        self.thread = threading.Thread(target=self._serve)

    def _serve(self) -> None:
        while data := self._receive():
            with self._lock:
                self.messages.append((REQUEST, data))
                answer = self._tree.answer(data)
                if answer is not None:
                    os.write(self._descriptor, answer)
                    self.messages.append((REPLY, answer))

    def _receive(self) -> bytes:
        while True:
            try:
                return os.read(self._descriptor, codes.READ_BUFFER_BYTES)
            except OSError as error:
                if error.errno == errno.ENODEV:
                    return b""
                if error.errno not in (errno.EINTR, errno.ENOENT):
                    raise

    def notify(self, sent: list[bytes]) -> None:
        """Under the lock, so that FORGETs pile up into a batch; nothing is in flight that a notice would wait for."""
        with self._lock:
            for notice in sent:
                with contextlib.suppress(FileNotFoundError):
                    os.write(self._descriptor, notice)
                    self.messages.append((NOTICE, notice))


def sent_notices() -> list[bytes]:
    """INVAL_ENTRY of every name brings FORGETs, one by one and in batches."""
    tree = nodes()
    names = [(parent, name) for parent, node in sorted(tree.items(), reverse=True) for name in node.children]
    entries = [notices.encode_inval_entry(parent, name) for parent, name in names]
    return [*entries, notices.encode_inval_inode(codes.ROOT_NODE), notices.encode_inc_epoch(), notices.encode_resend()]


def record(*, zero_message: bool) -> list[Message]:
    """One session, from INIT to the end of the mount."""
    with tempfile.TemporaryDirectory() as temporary:
        directory = Path(temporary)
        descriptor = kernel.mount(directory, MountOptions("static", allow_other=True))
        recorder = Recorder(descriptor, StaticTree(zero_message=zero_message))
        recorder.thread.start()
        try:
            subprocess.run([sys.executable, "-c", ACTIVITY, temporary], check=True, timeout=30)
            recorder.notify(sent_notices())
            subprocess.run(["ls", "-l", temporary], check=True, timeout=30, stdout=subprocess.DEVNULL)
        finally:
            kernel.unmount(directory, lazy=True)
            recorder.thread.join()
            os.close(descriptor)
    return recorder.messages


def main() -> None:
    for name, zero_message in (("in_full", False), ("zero_message", True)):
        save(name, record(zero_message=zero_message))


if __name__ == "__main__":
    main()
