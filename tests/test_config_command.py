"""cvfs config, and names instead of addresses: the real command, on a real store."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from cvfs.trust.values import root_id
from tests.command import Command
from tests.small_store import SmallStore

NAME = "small.example.org"


@pytest.fixture
def cvfs(tmp_path: Path) -> Iterator[Command]:
    command = Command(tmp_path)
    command.environment["CVFS_CONFIG"] = f"{tmp_path}/etc"
    yield command
    command.clean_up()


def test_add_makes_the_name_do_for_the_address(cvfs: Command, store: SmallStore, tmp_path: Path) -> None:
    root = root_id(store.root.read_bytes())
    store.root.unlink()  # the environment of `cvfs` would name it
    assert "no root of trust" in cvfs.refused("config", "add", store.path)
    assert "has no root with the SHA-256" in cvfs.refused("config", "add", "--root-sha256", "0" * 64, store.path)
    assert cvfs.refused("config", "list") == f"there is no directory {tmp_path}/etc, which CVFS_CONFIG names"
    file = tmp_path / f"etc/repositories.d/{NAME}.toml"
    said = cvfs.ok("config", "add", "--root-sha256", root, "--refresh", "2 min", store.path)
    assert said.decode() == f"{NAME}: {file}\n"
    assert file.read_text() == f'url = "{store.path.as_uri()}"\nroot_sha256 = "{root}"\nrefresh_s = 120\n'
    assert cvfs.ok("ls", NAME) == b"hello\n"
    assert cvfs.ok("config", "list").decode() == f"{NAME}  {store.path.as_uri()}  ({file})\n"
    assert "is configured already" in cvfs.refused("config", "add", "--root-sha256", root, store.path)
    shown = json.loads(cvfs.ok("config", "show", NAME, "--json"))
    assert shown["refresh_s"] == {"value": 120, "origin": f"{file}:3"}
    assert shown["cache"] == {"value": str(cvfs.cache), "origin": "environment CVFS_CACHE"}
    cvfs.ok("config", "remove", NAME)
    assert "neither configured, nor an address" in cvfs.refused("ls", NAME)
    assert f"{NAME!r} is not configured" in cvfs.refused("config", "remove", NAME)


def test_what_was_met_first_is_pinned(cvfs: Command, store: SmallStore, tmp_path: Path) -> None:
    root = root_id(store.root.read_bytes())
    store.root.unlink()
    cvfs.ok("config", "add", "--trust-on-first-use", "--name", NAME, store.path)
    lines = (tmp_path / f"etc/repositories.d/{NAME}.toml").read_text().splitlines()
    assert lines[1:] == [f'name = "{NAME}"', f'root_sha256 = "{root}"']


def test_root_in_a_file_is_not_needed_again(cvfs: Command, store: SmallStore, tmp_path: Path) -> None:
    cvfs.ok("config", "add", store.path)
    (tmp_path / "root.json").unlink()
    assert cvfs.ok("ls", NAME) == b"hello\n"


def test_add_without_a_look(cvfs: Command, tmp_path: Path) -> None:
    cvfs.ok("config", "add", "--no-check", "--mirror", "http://b/x", "http://127.0.0.1:9/soft.example.org")
    cvfs.ok("config", "add", "--no-check", "--replace", "--mirror", "http://c/x", "http://127.0.0.1:9/soft.example.org")
    lines = cvfs.ok("config", "show", "soft.example.org").decode().splitlines()
    assert f'mirrors = ["http://c/x"]  # {tmp_path}/etc/repositories.d/soft.example.org.toml:2' in map(_squeezed, lines)
    assert "use --name" in cvfs.refused("config", "add", "--no-check", "http://localhost/")
    assert "not the name of a repository" in cvfs.refused("config", "add", "--no-check", "--name", "../x", "http://h/")


def test_what_was_said_is_written_also_where_it_is_nothing(cvfs: Command) -> None:
    options = ("--uid", "0", "--no-exec", "--deadline", "0.5", "--refresh", "1234567")
    cvfs.ok("config", "add", "--no-check", *options, "http://127.0.0.1:9/soft.example.org")
    lines = [
        line.split("  #")[0].strip() for line in cvfs.ok("config", "show", "soft.example.org").decode().splitlines()
    ]
    assert {"uid = 0", "exec = false", "deadline_s = 0.5", "refresh_s = 1234567"} <= set(lines)


def _squeezed(line: str) -> str:
    return "  # ".join(part.strip() for part in line.split("  # "))


def test_mistake_in_a_file_is_one_line(cvfs: Command, store: SmallStore, tmp_path: Path) -> None:
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc/config.toml").write_text("\nrefresh = 5\n")
    why = f"{tmp_path}/etc/config.toml:2: unknown setting 'refresh'; did you mean 'refresh_s'?"
    assert cvfs.refused("ls", store.path) == why
    assert cvfs.refused("cache", "info") == why
