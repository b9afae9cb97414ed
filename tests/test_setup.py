"""cvfs setup: the files it makes, that they work, and that it removes no others."""

import stat
import subprocess
from pathlib import Path

import pytest

from tests.command import ROOT, Command


@pytest.fixture
def cvfs(tmp_path: Path) -> Command:
    return Command(tmp_path)


def test_what_is_installed_is_removed_again(cvfs: Command, tmp_path: Path) -> None:
    prefix = tmp_path / "root"
    printed = [Path(line) for line in cvfs.ok("setup", "--prefix", prefix).decode().splitlines()]
    files = {path for path in prefix.rglob("*") if path.is_file()}
    assert set(printed) == files
    units = {path.name for path in (ROOT / "contrib/systemd").iterdir()}
    helpers = {"mount.cvfs", "mount.fuse.cvfs"}
    assert {path.name for path in files} >= units | helpers | {"cvfs.8", "cvfs", "_cvfs", "cvfs.fish"}
    assert all(stat.S_IMODE(path.stat().st_mode) == (0o755 if path.name in helpers else 0o644) for path in files)
    _check_units(prefix / "etc/systemd/system")
    for name in helpers:
        _check_helper(prefix / "sbin" / name, tmp_path)
    _check_completion(prefix / "usr/share/bash-completion/completions/cvfs")
    assert "\n.SH CVFS MOUNT\n" in (prefix / "usr/local/share/man/man8/cvfs.8").read_text()
    assert cvfs.ok("setup", "--prefix", prefix).count(b"\n") == len(files)  # again, as after an upgrade
    foreign = prefix / "etc/systemd/system/cvfs@.service"
    foreign.write_text("[Service]\n")
    assert cvfs.refused("setup", "--prefix", prefix).startswith(f"{foreign} is there, and is not from")
    assert cvfs.ok("setup", "--prefix", prefix, "--remove").count(b"\n") == len(files) - 1
    assert [path for path in prefix.rglob("*") if path.is_file()] == [foreign]


def _check_units(units: Path) -> None:
    """No unit needs a search path."""
    text = "".join(path.read_text() for path in units.iterdir())
    assert "/usr/bin/env cvfs" not in text
    assert "python" in text


def _check_helper(helper: Path, directory: Path) -> None:
    """It runs from an empty environment, and says in mount(8)'s own numbers what went wrong. Root calls it in whatever
    directory he is in: no code of that runs."""
    (directory / "getopt.py").write_text("raise SystemExit('code of the directory')\n")
    for words, status, why in (
        (["only-one"], 1, "wanted SPEC DIRECTORY"),
        (["-N", "x", "a", "b"], 1, "wanted SPEC DIRECTORY"),
        (["--nonsense"], 1, "option --nonsense not recognized"),
        (["nowhere", "/", "-o", "rw"], 32, "neither configured"),
        (["nowhere", "/", "-s", "-o", "user_id=0,nonsense,remount", "-t", "fuse.cvfs"], 32, "cannot be changed while"),
        (["nowhere", "/", "-f", "-v", "-o", "anything"], 0, ""),
    ):
        outcome = subprocess.run(
            [helper, *words], check=False, capture_output=True, text=True, env={}, timeout=30, cwd=directory
        )
        assert outcome.returncode == status
        assert why in outcome.stderr
        assert outcome.stderr.count("\n") == (1 if why else 0)


def _check_completion(script: Path) -> None:
    shell = f'. {script}; COMP_WORDS=(cvfs um); COMP_CWORD=1; cvfs() {{ "$@"; }}; complete -p cvfs'
    outcome = subprocess.run(["bash", "-c", shell], check=True, capture_output=True, text=True)
    assert outcome.stdout.strip().endswith("cvfs")


def test_who_may_not_write_is_told(cvfs: Command, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert "cannot write" in cvfs.refused("setup", "--prefix", tmp_path / "file")
