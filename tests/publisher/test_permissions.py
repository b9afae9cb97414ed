"""Who may read and write in the directory of a store, and what can be done by those who may only read."""

import shutil
import subprocess
from pathlib import Path

import pytest

from tests.cache.disks import needs_root
from tests.publisher.stores import Store, command, environment, error_line, run
from tests.trees import File, make_tree


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    make_tree(tmp_path / "tree", {b"a": File(data=b"a"), b"d/b": File(data=b"b" * 5000)})
    return tmp_path / "tree"


@needs_root
def test_reading_needs_no_right_to_write(tmp_path: Path, tree: Path) -> None:
    """A copy of what is served is a store for all that reads."""
    store, copy = Store(tmp_path / "store"), tmp_path / "copy"
    store.publish(tree)
    copy.mkdir()
    for name in ("data", "metadata"):
        shutil.copytree(store.path / name, copy / name)
    keys, state = ("--keys", store.keys.directory), ("--state", store.state)
    subprocess.run(["mount", "--bind", copy, copy], check=True)
    try:
        subprocess.run(["mount", "-o", "remount,bind,ro", copy], check=True)
        for words in (("log", copy), ("check", copy), ("diff", copy, "0"), ("tag", copy)):
            assert run(*words).returncode == 0, words
        assert run("publish", copy, tree, "--dry-run", *state).returncode == 0
        assert run("gc", copy, "--keep", "1", "--dry-run", *keys, *state).returncode == 0
        assert "Read-only file system" in error_line(run("gc", copy, "--keep", "1", *keys, *state))
    finally:
        subprocess.run(["umount", copy], check=True)
    assert run("gc", copy, "--keep", "1", *keys, *state).returncode == 0


@pytest.mark.parametrize("mode", [0o755, 0o700, 0o750, 0o2775])
def test_what_is_made_in_a_store_has_the_permissions_of_its_directory(tmp_path: Path, tree: Path, mode: int) -> None:
    path = tmp_path / "store"
    path.mkdir()
    path.chmod(mode)
    line = ["sh", "-c", 'umask 077 && exec "$@"', "sh"]
    for words in (
        ("init", path, "--name", "a.b", "--keys", tmp_path / "store-keys"),
        ("publish", path, tree, "--state", tmp_path / "state"),
        ("tag", path, "v1", "--keys", tmp_path / "store-keys"),
    ):
        subprocess.run([*line, *command(*words)], env=environment(), check=True, stdout=subprocess.DEVNULL)
    found = {str(each.relative_to(path)): each.stat().st_mode & 0o7777 for each in path.rglob("*")}
    assert len(found) > 20
    for name, has in found.items():
        assert has == (mode if (path / name).is_dir() else mode & (0o666 if name.endswith("lock") else 0o644)), name


def test_state_is_for_its_owner_alone(tmp_path: Path, tree: Path) -> None:
    """Who can write there can say what a tree looks like; so it is whatever the umask, and with what is above it."""
    store, state = Store(tmp_path / "store"), tmp_path / "a/b"
    words = command("publish", store.path, tree, "--state", state, "--keys", store.keys.directory)
    line = ["sh", "-c", 'umask 0 && exec "$@"', "sh"]
    subprocess.run([*line, *words], env=environment(), check=True, stdout=subprocess.DEVNULL)
    for directory in (state, state.parent):
        assert directory.stat().st_mode & 0o777 == 0o700
