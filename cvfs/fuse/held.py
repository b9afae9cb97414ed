"""What a supervisor holds for its workers: the descriptors of the mount, and a state."""

import contextlib
import errno
import logging
import os
import select
import socket
import struct
from typing import Final

from cvfs.fuse.link import FUSE, LISTENER, Message
from cvfs.fuse.protocol.codes import READ_BUFFER_BYTES, UNANSWERED_OPCODES
from cvfs.fuse.protocol.notices import encode_resend

log = logging.getLogger(__name__)

_ABORT: Final = "/sys/fs/fuse/connections/{}/abort"
_BACKLOG: Final = 16
_IN_HEADER: Final = struct.Struct("=IIQ")
_OUT_HEADER: Final = struct.Struct("=IiQ")


class Held:
    """`descriptors` by name, and `state`, as workers have left them for those after them.

    `may_resend`: let the kernel repeat requests, if it can.
    """

    def __init__(self, *, may_resend: bool = True) -> None:
        self.descriptors: dict[str, int] = {}
        self.state: Message = {}
        self._may_resend = may_resend

    def add(self, descriptors: dict[str, int]) -> None:
        """Hold these too, and let go of those that they take the place of."""
        for name in descriptors.keys() & self.descriptors.keys():
            os.close(self.descriptors[name])
        self.descriptors |= descriptors
        if FUSE + "0" in descriptors:
            self.state.pop("resend", None)  # of the mount before
        if LISTENER in descriptors:
            # Whoever connects sees the credentials of the last one who listened: the process that stays.
            with socket.socket(fileno=os.dup(descriptors[LISTENER])) as listener:
                listener.listen(_BACKLOG)

    @property
    def device(self) -> int | None:
        """The descriptor that all requests can be read from; None while nothing is mounted."""
        return self.descriptors.get(FUSE + "0")

    @property
    def mounted(self) -> list[str]:
        """Where, and the number of the device, to be taken away by whoever ends last; empty if nothing is mounted."""
        return [] if self.state.get("unmounted") else self.state.get("mounted", [])

    @property
    def is_connected(self) -> bool:
        """Whether the mount is there, and served by whoever has the descriptors."""
        return self.device is not None and is_connected(self.device)

    @property
    def is_initialized(self) -> bool:
        """Whether something is mounted whose INIT was answered: then it is known what the kernel can do."""
        return self.device is not None and "resend" in self.state

    @property
    def can_resend(self) -> bool:
        """Whether the kernel can be had to queue again what was read and not answered."""
        return self._may_resend and bool(self.state.get("resend"))

    def resend(self) -> bool:
        """Have the kernel queue again what was read and not answered. False: it cannot, or nothing is mounted."""
        if self.device is None or not self.can_resend:
            return False
        try:
            os.write(self.device, encode_resend())
        except OSError as error:
            log.debug("RESEND: %s", error)
        return True

    def refuse_request(self) -> bool:
        """Answer one request with EIO, if there is one; none may be INIT. False: the mount is gone."""
        if self.device is None:
            return True
        try:
            data = os.read(self.device, READ_BUFFER_BYTES)
            _, opcode, unique = _IN_HEADER.unpack_from(data)
            if opcode not in UNANSWERED_OPCODES:
                os.write(self.device, _OUT_HEADER.pack(_OUT_HEADER.size, -errno.EIO, unique))
        except BlockingIOError:
            return True
        except OSError as error:
            return error.errno != errno.ENODEV
        return True

    def let_mount_go(self) -> None:
        """End the connection, and with it all that waits for it: also where a worker that hangs in the kernel, which
        outlives SIGKILL, has copies of the descriptors. Where that is not permitted they end with the last copy."""
        if self.state.get("mounted") and self.is_connected:
            _, number = self.state["mounted"]
            with contextlib.suppress(OSError), open(_ABORT.format(number.partition(":")[2]), "wb", buffering=0) as file:
                file.write(b"1")
        for name in [name for name in self.descriptors if name.startswith(FUSE)]:
            os.close(self.descriptors.pop(name))

    def remove_files(self) -> None:
        """What was to be there as long as the mount."""
        remove_files(self.state.get("unlink", {}))


def is_connected(device: int) -> bool:
    """Whether the mount of a descriptor of /dev/fuse is there, so that its number is not another's by now."""
    poll = select.poll()
    poll.register(device, 0)
    return not poll.poll(0)


def remove_files(unlink: dict[str, int | None]) -> None:
    """Remove the files of a mount, by path. Where there is an inode number, only if it is still that one: a mount that
    was made since on the same directory has put its own in the place of ours."""
    for path, inode in unlink.items():
        with contextlib.suppress(FileNotFoundError):
            if inode is None or os.stat(path).st_ino == inode:
                os.unlink(path)
