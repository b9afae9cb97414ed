"""Bytes on their way to the disk: written whole, begun early, waited for."""

import ctypes
import errno
import os

_SYNC_FILE_RANGE_WRITE = 2

_libc = ctypes.CDLL(None, use_errno=True)


def write_all(descriptor: int, data: bytes) -> None:
    """write(2) until all of `data` is written: a nearly full disk takes a part of it first."""
    rest = memoryview(data)
    while rest:
        rest = rest[os.write(descriptor, rest) :]


def begin_write_back(descriptor: int) -> None:
    """sync_file_range(2), which Python lacks: let the disk write a file while the next ones are compressed.

    It makes nothing durable, so where it cannot be done nothing is lost; but `sync`, which does, finds little left to
    wait for: 0.01 s instead of 0.16 s after 540 MB, on a fast disk.
    """
    sync_file_range = getattr(_libc, "sync_file_range", None)
    if sync_file_range is not None:
        whole = ctypes.c_int64(0)
        sync_file_range(descriptor, whole, whole, _SYNC_FILE_RANGE_WRITE)


def sync_file_system(descriptor: int) -> None:
    """syncfs(2), which Python lacks: one call for all new files. Elsewhere than on Linux, sync(2).

    It raises OSError also for what the disk refused before, but since `descriptor` was opened at the latest.
    """
    syncfs = getattr(_libc, "syncfs", None)
    if syncfs is None:
        os.sync()
    elif syncfs(descriptor) != 0:
        number = ctypes.get_errno() or errno.EIO
        raise OSError(number, os.strerror(number))
