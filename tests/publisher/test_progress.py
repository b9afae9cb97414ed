"""What a publisher shows on a real terminal while it works, and that none of it is left or goes anywhere else."""

import random
import re
from pathlib import Path

import pytest

from tests.publisher.stores import Store, command, environment, run
from tests.terminal import COLUMNS, on_terminal


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Enough to publish for about half a second."""
    top, chance = tmp_path_factory.mktemp("tree"), random.Random(1)
    for number in range(100):
        (top / f"{number}").write_bytes(chance.randbytes(300_000).hex().encode())
    return top


def _on_terminal(*arguments: str | Path) -> str:
    return on_terminal(command(*arguments), environment(CVFS_KEYS=f"{arguments[1]}-keys"))


def test_files_bytes_rate_and_time_left_then_a_clean_line(tmp_path: Path, tree: Path) -> None:
    store = Store(tmp_path / "store")
    written = _on_terminal("publish", store.path, tree, "--state", tmp_path / "state")
    shown = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", written)
    assert re.search(r"Publishing \S+ +\d+ files, [\d.]+ MiB, [\d.]+ MiB/s, 0:00:\d\d left", shown)
    lines = re.split(r"[\r\n]+", shown)
    assert max(map(len, lines)) <= COLUMNS
    *_, after = re.split(r"\x1b\[2K", written)
    assert "Publishing" not in after
    assert after.lstrip("\r").startswith("Published revision 1"), "the bar has gone, nothing is left in its line"
    assert written.rfind("\x1b[?25h") > written.rfind("\x1b[?25l"), "the cursor is back"


@pytest.mark.parametrize("option", ["--json", "--quiet"])
def test_no_bar_if_results_are_for_programs(tmp_path: Path, tree: Path, option: str) -> None:
    store = Store(tmp_path / "store")
    written = _on_terminal("publish", store.path, tree, "--state", tmp_path / "state", option, "--dry-run")
    assert "\x1b" not in written


def test_no_bar_without_a_terminal(tmp_path: Path, tree: Path) -> None:
    store = Store(tmp_path / "store")
    done = run("publish", store.path, tree, "--state", tmp_path / "state", TERM="xterm-256color")
    assert done.returncode == 0
    assert done.stderr == ""
    assert done.stdout.startswith("Published revision 1")
