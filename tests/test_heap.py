"""Freed memory is used again, and given back once it is not."""

import ctypes
import subprocess
import sys
from pathlib import Path

import pytest

from cvfs.heap import PAGE_BYTES, unfilled

ROOT = Path(__file__).resolve().parents[1]

PROGRAM = """
from pathlib import Path
from cvfs.heap import give_back, keep_freed_memory

def resident():
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("RssAnon"))

keep_freed_memory()
buffers = [bytes(1 << 20) for _ in range(64)]
for buffer in range(64):
    buffers[buffer] = b"x" * (1 << 20)
last = buffers[-1]
del buffers, buffer
kept = resident()
give_back()
print(kept, resident())
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_what_is_free_in_the_middle_of_the_heap_is_given_back() -> None:
    done = subprocess.run([sys.executable, "-c", PROGRAM], cwd=ROOT, capture_output=True, text=True, check=True)
    kept, left = map(int, done.stdout.split())
    assert kept > 64 << 10
    assert left < kept - (48 << 10)


@pytest.mark.parametrize("offset", [0, 1, PAGE_BYTES - 1, PAGE_BYTES, (1 << 40) + 77])
def test_buffer_that_is_not_filled_is_a_buffer_like_others(offset: int) -> None:
    for size in (0, 1, 1 << 20):
        buffer = unfilled(size, offset)
        buffer[:] = b"x" * size
        assert buffer == b"x" * size
        if size:
            assert (ctypes.addressof(ctypes.c_char.from_buffer(buffer)) - offset) % PAGE_BYTES == 0
