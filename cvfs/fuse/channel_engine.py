"""The engine that speaks the kernel's protocol itself: a mount that one process serves from its start to its end."""

import contextlib
import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import Final

from cvfs.errors import MountError
from cvfs.filesystem import View
from cvfs.fuse import kernel
from cvfs.fuse.channel import Channel
from cvfs.fuse.handlers import Handlers
from cvfs.fuse.options import MountOptions
from cvfs.fuse.protocol.negotiation import FLEETING_FLAGS, Session, Wishes

log = logging.getLogger(__name__)

READ_AHEAD_KIB: Final = 1024


async def serve(
    filesystem: View, directory: Path, options: MountOptions, started: Callable[[], None] = lambda: None
) -> None:
    """Mount on `directory` and serve until it is unmounted; `started()` is called once the kernel has been answered.

    Raises MountError if the kernel, or fusermount3, refuses. Cancelled: unmounted, lazily where it is in use.
    """
    descriptor = kernel.mount(directory, kernel_options(options))

    def initialized(session: Session) -> None:
        raise_read_ahead(directory)
        started()

    handlers, wishes = Handlers(filesystem), wishes_of(options)
    try:
        await Channel(descriptor, handlers, options.request_deadline_s, wishes=wishes, initialized=initialized).serve()
    finally:
        with contextlib.suppress(MountError):
            kernel.unmount(directory, lazy=True)
        os.close(descriptor)


def kernel_options(options: MountOptions) -> kernel.MountOptions:
    return kernel.MountOptions(
        options.source,
        allow_other=options.allow_other,
        suid=options.suid,
        devices=options.dev,
        executable=options.executable,
    )


def wishes_of(options: MountOptions) -> Wishes:
    return Wishes(FLEETING_FLAGS) if options.is_fleeting else Wishes()


def raise_read_ahead(directory: Path) -> None:
    """Where it is permitted: 1 MiB a READ instead of 128 KiB. Only after INIT was answered."""
    if not kernel.set_read_ahead(directory, READ_AHEAD_KIB):
        log.info("the read-ahead of %s cannot be raised: large files are read in smaller requests", directory)
