"""The peers: ext4 (the tree itself) and squashfuse, a FUSE file system in C over a zstd-compressed image."""

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from benchmarks.frame import Context

SQUASHFUSE = "squashfuse_ll"
LOCAL = "ext4"
"""What the trees lie on is called by what it should be; the notes of a report say what it is."""


def have(*programs: str) -> bool:
    return all(shutil.which(program) for program in programs)


def have_squashfuse() -> bool:
    return have("mksquashfs", SQUASHFUSE) and os.access("/dev/fuse", os.W_OK)


def make_image(tree: Path, image: Path) -> None:
    argv = ["mksquashfs", str(tree), str(image), "-comp", "zstd", "-noappend", "-no-progress", "-quiet"]
    subprocess.run(argv, check=True, stdout=subprocess.DEVNULL)


def make_archive(tree: Path, archive: Path) -> None:
    """tar | zstd -3 on all cores."""
    with archive.open("wb") as out:
        tar = subprocess.Popen(["tar", "--create", "--directory", str(tree), "."], stdout=subprocess.PIPE)
        subprocess.run(["zstd", "-3", "-T0", "-q", "-c"], stdin=tar.stdout, stdout=out, check=True)
        if tar.wait():
            raise subprocess.CalledProcessError(tar.returncode, "tar")


def image_of(context: Context, tree: Path) -> Path:
    """The image of a tree, made once and kept."""
    image = context.work / "images" / f"{tree.name}.squashfs"
    image.parent.mkdir(exist_ok=True)
    if not image.exists():
        unfinished = image.with_suffix(f".{os.getpid()}")
        make_image(tree, unfinished)
        unfinished.rename(image)
    return image


@contextmanager
def squashfuse(image: Path, directory: Path) -> Iterator[Path]:
    """The image mounted on `directory`, by a new process."""
    directory.mkdir(exist_ok=True)
    subprocess.run([SQUASHFUSE, str(image), str(directory)], check=True)
    try:
        yield directory
    finally:
        subprocess.run(["umount" if os.geteuid() == 0 else "fusermount3", *_OPTIONS, str(directory)], check=True)


_OPTIONS = [] if os.geteuid() == 0 else ["-u"]
