"""A bare virtual environment and a plain `pip install` make a client that mounts: no compiler, no libfuse, no root."""

import os
import shutil
import sys
from pathlib import Path

import pytest

from tests.e2e.host import NAME, ROOT, Server, Store, run
from tests.e2e.plain import GID, UID, Plain

HIDDEN = ("gcc", "cc", "g++", "c++", "clang", "pkg-config", "fusermount", "fusermount3", "sudo")
MOUNT = """
"$1" mount "$2" "$3"
cat "$3/hello"
"$1" umount "$3"
"""


def install(plain: Plain) -> Path:
    """The command, in a virtual environment of his own, by his own pip."""
    source = plain.top / "source"
    source.mkdir()
    for name in ("cvfs", "publisher", "contrib"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("setup.cfg", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    run("chown", "--recursive", f"{UID}:{GID}", source)
    environment = {name: value for name, value in os.environ.items() if name.startswith("PIP_")}
    del plain.environment["PYTHONPATH"]
    plain(sys._base_executable, "-m", "venv", "venv")
    plain("venv/bin/pip", "install", "--quiet", "--no-cache-dir", source, timeout_s=200.0, **environment)
    return plain.home / "venv/bin/cvfs"


@pytest.mark.timeout(300)
def test_pip_install_is_enough(tmp_path: Path) -> None:
    """It takes 30 to 60 s, nearly all of them pip's; the package index has to be reachable."""
    plain = Plain(tmp_path, HIDDEN)
    try:
        client = install(plain)
        for program in HIDDEN:
            assert plain("sh", "-c", f"{program} --version", check=False).returncode in (126, 127)
        assert plain("venv/bin/python", "-c", "import pyfuse3", check=False).returncode == 1
        (tmp_path / "tree").mkdir()
        (tmp_path / "tree/hello").write_text("hello\n")
        store = Store(tmp_path / "store")
        store.publish(tmp_path / "tree")
        with Server(store.path, tmp_path) as server:
            assert plain(client, "run", server.url, "--", "cat", f"/cvfs/{NAME}/hello").stdout == b"hello\n"
            mine = plain.home / "mine"
            mine.mkdir()
            words = ("unshare", "--map-root-user", "--mount", "--pid", "--fork", "sh", "-euc", MOUNT, "sh")
            environment = {f"CVFS_{name}": str(plain.home / name) for name in ("CACHE", "STATE_DIR", "LOG_DIR")}
            outcome = plain(*words, client, server.url, mine, CVFS_RUNTIME_DIR=str(plain.home / "run"), **environment)
            assert outcome.stdout == b"hello\n"
    finally:
        plain.close()
