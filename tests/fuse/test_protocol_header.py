"""Our sizes and numbers, held against those that a C compiler finds in the kernel's header."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from cvfs.fuse.protocol import codes, negotiation, notices, replies
from cvfs.fuse.protocol.codes import Opcode
from tests.fuse import kernel_side as kernel
from tests.fuse.static_tree import VALIDITY

HEADER = Path("/usr/include/linux/fuse.h")
ATTR = replies.NO_ATTR
SESSION = negotiation.negotiate(negotiation.Offer(7, 31, 0, codes.InitFlag(0)), negotiation.Wishes())
assert SESSION


def body(request: bytes, variable: int = 0) -> int:
    """The size of the struct in a request's body; `variable` bytes follow it."""
    return len(request) - 40 - variable


def payload(reply: bytes) -> int:
    return len(reply) - 16


SIZES = {
    "fuse_in_header": (len(kernel.request(0)), 40),
    "fuse_out_header": (len(replies.encode_error(1, 1)), 16),
    "fuse_attr": (len(ATTR), 88),
    "fuse_entry_out": (payload(replies.encode_entry(1, 1, ATTR, VALIDITY)), 128),
    "fuse_attr_out": (payload(replies.encode_attributes(1, ATTR, 0)), 104),
    "fuse_open_out": (payload(replies.encode_open(1, 1, 0)), 16),
    "fuse_statfs_out": (payload(replies.encode_statfs(1, replies.Statfs(0, 0, 0, 0, 0, 0, 0))), 80),
    "fuse_getxattr_out": (payload(replies.encode_xattr(1, b"x", 0)), 8),
    "fuse_lseek_out": (payload(replies.encode_lseek(1, 0)), 8),
    "fuse_init_out": (payload(negotiation.encode_init(1, SESSION)), 64),
    "fuse_statx_out": (payload(replies.encode_statx(1, ATTR, 0)), 288),
    "fuse_dirent": (replies.DIRENT_BYTES, 24),
    "fuse_direntplus": (replies.DIRENTPLUS_BYTES, 152),
    "fuse_notify_inval_inode_out": (payload(notices.encode_inval_inode(1)), 24),
    "fuse_notify_inval_entry_out": (payload(notices.encode_inval_entry(1, b"name")) - 5, 16),
    "fuse_getattr_in": (body(kernel.getattr_(0, 0)), 16),
    "fuse_open_in": (body(kernel.open_(0, 0)), 8),
    "fuse_read_in": (body(kernel.read(0, 0, 0, 0)), 40),
    "fuse_release_in": (body(kernel.release(0, 0, 0, 0)), 24),
    "fuse_flush_in": (body(kernel.flush(0, 0)), 24),
    "fuse_fsync_in": (body(kernel.fsync(0, 0)), 16),
    "fuse_access_in": (body(kernel.access(0)), 8),
    "fuse_getxattr_in": (body(kernel.getxattr(b"name", 0), 5), 8),
    "fuse_interrupt_in": (body(kernel.interrupt(0)), 8),
    "fuse_forget_in": (body(kernel.forget(0)), 8),
    "fuse_batch_forget_in": (body(kernel.batch_forget([])), 8),
    "fuse_forget_one": (body(kernel.batch_forget([(1, 1)]), 8), 16),
    "fuse_lseek_in": (body(kernel.lseek(0, 0, 0)), 24),
    "fuse_statx_in": (body(kernel.statx(0, 0, 0, 0)), 24),
    "fuse_ioctl_in": (body(kernel.ioctl(0, 0, 0, b"in"), 2), 32),
    "fuse_init_in": (body(kernel.init(7, 45, 0, 0)), 64),
}


@pytest.mark.parametrize("struct_name", SIZES)
def test_sizes_are_the_documented_ones(struct_name: str) -> None:
    ours, documented = SIZES[struct_name]
    assert ours == documented


@pytest.mark.skipif(not (HEADER.exists() and shutil.which("gcc")), reason="needs gcc and linux/fuse.h")
def test_sizes_and_numbers_are_those_of_the_header(tmp_path: Path) -> None:
    text = HEADER.read_text(encoding="utf-8")
    ours = {
        f"sizeof(struct {name})": size for name, (size, _) in SIZES.items() if re.search(rf"struct {name} \{{", text)
    }
    ours |= {name: number for name, number in our_numbers().items() if re.search(rf"\b{name}\b", text)}
    assert len(ours) > 120
    assert c_values(list(ours), tmp_path) == ours


def test_numbers_that_older_headers_lack() -> None:
    read, magic = 2 << 30, 229 << 8
    assert read | 4 << 16 | magic | 0 == codes.DEV_IOC_CLONE
    assert (Opcode.TMPFILE, Opcode.STATX, Opcode.COPY_FILE_RANGE_64) == (51, 52, 53)
    assert (codes.InitFlag.HAS_EXPIRE_ONLY, codes.InitFlag.PASSTHROUGH) == (1 << 35, 1 << 37)
    assert (codes.InitFlag.HAS_RESEND, codes.InitFlag.REQUEST_TIMEOUT) == (1 << 39, 1 << 42)


def our_numbers() -> dict[str, int]:
    """Every number of `codes`, by its name in the header. A struct's flexible array does not count in sizeof."""
    found = {f"FUSE_{opcode.name}": int(opcode) for opcode in Opcode}
    found |= {f"FUSE_{flag.name}": int(flag) for flag in codes.InitFlag}
    found |= {f"FOPEN_{flag.name}": int(flag) for flag in codes.OpenFlag}
    found |= {f"FUSE_NOTIFY_{notice.name}": int(notice) for notice in codes.Notice}
    found |= {f"FUSE_{name}": getattr(codes, name) for name in ("GETATTR_FH", "EXPIRE_ONLY", "DEV_IOC_CLONE")}
    return found | {"FUSE_ROOT_ID": codes.ROOT_NODE, "FUSE_KERNEL_VERSION": codes.MAJOR}


def c_values(expressions: list[str], directory: Path) -> dict[str, int]:
    """What a C compiler says that each expression is; (1 << 31) is an int there, and negative."""
    lines = [
        f'    printf("%llu\\n", (unsigned long long)({one}) & (({one}) < 0 ? 0xffffffffu : ~0ull));'
        for one in expressions
    ]
    includes = ["#include <stdio.h>", "#include <sys/ioctl.h>", "#include <linux/fuse.h>"]
    source = "\n".join([*includes, "int main(void) {", *lines, "    return 0;", "}", ""])
    program = directory / "values"
    subprocess.run(["gcc", "-x", "c", "-w", "-o", program, "-"], input=source, text=True, check=True)
    output = subprocess.run([program], capture_output=True, text=True, check=True).stdout
    return dict(zip(expressions, map(int, output.split()), strict=True))
