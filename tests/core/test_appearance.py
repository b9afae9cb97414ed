"""Owners and variables in links, as policy and in the file system core."""

import os
import stat
from pathlib import Path

import pytest

from cvfs.appearance import Appearance, Owners
from cvfs.config import Settings
from cvfs.config.kinds import OTHERS
from cvfs.limits import MAX_PATH_BYTES
from cvfs.model import Entry
from cvfs.mount.appearance import appearance_of, preset_variables

VARIABLES = {b"ARCH": b"x86_64", b"EMPTY": b"", b"LOOP": b"$(ARCH)"}


def _link(target: bytes, uid: int = 0, gid: int = 0) -> Entry:
    return Entry(b"link", stat.S_IFLNK | 0o777, uid, gid, 0, len(target), 1, 0, 0, b"", target, ())


def _file(uid: int, gid: int) -> Entry:
    return Entry(b"file", stat.S_IFREG | 0o644, uid, gid, 0, 77, 1, 0, 0, b"", b"", ())


@pytest.mark.parametrize(
    ("target", "shown"),
    [
        (b"lib/$(ARCH)/x", b"lib/x86_64/x"),
        (b"$(ARCH:-any)", b"x86_64"),
        (b"$(NONE:-lib/any)/$(ARCH)", b"lib/any/x86_64"),
        (b"a$(NONE)b", b"ab"),
        (b"a$(EMPTY:-default)b", b"ab"),
        (b"$(LOOP)", b"$(ARCH)"),
        (b"$ARCH/${ARCH}/$(ARCH", b"$ARCH/${ARCH}/$(ARCH"),
        (b"$(A B)/$()/$(1)/$(ARCH:x)", b"$(A B)/$()/$(1)/$(ARCH:x)"),
        (b"$(NONE:-$(ARCH))", b"$(NONE:-x86_64)"),
        (b"\xff$(ARCH)\xff", b"\xffx86_64\xff"),
        (b"$(ARCH)" * 600, b"x86_64" * 600),
        (b"$(ARCH)" + b"x" * (MAX_PATH_BYTES - 6), b"x86_64" + b"x" * (MAX_PATH_BYTES - 6)),
    ],
)
def test_variables_in_links(target: bytes, shown: bytes) -> None:
    entry = Appearance(variables=VARIABLES).show(_link(target))
    assert (entry.target, entry.size) == (shown, len(shown))


def test_too_long_a_link_is_left_alone() -> None:
    link = _link(b"$(LONG)" * 2)
    assert Appearance(variables={b"LONG": b"x" * (MAX_PATH_BYTES // 2 + 1)}).show(link) is link


def test_nothing_is_resolved_unless_asked() -> None:
    link = _link(b"$(ARCH)")
    assert Appearance().show(link) is link
    assert not Appearance(variables=VARIABLES).changes_owners


def test_owners() -> None:
    appearance = Appearance(Owners(by_id={1000: 5}, others=9), Owners(by_id={7: 8}))
    assert appearance.changes_owners
    shown = [appearance.show(_file(uid, gid)) for uid, gid in ((1000, 7), (3, 3))]
    assert [(entry.uid, entry.gid, entry.size) for entry in shown] == [(5, 8, 77), (9, 3, 77)]
    entry = _file(4, 4)
    assert Appearance(Owners(4), Owners(4)).show(entry) is entry
    assert Appearance(Owners(0)).show(entry).uid == 0


def test_settings_of_owners_go_before_each_other() -> None:
    maps = {"uid_map": {1: 2, OTHERS: 3}, "gid_map": {1: 4}}
    seen = []
    for settings in (Settings(**maps), Settings(own=True, **maps), Settings(uid=6, own=True), Settings(gid=0)):
        entry = appearance_of(settings).show(_file(1, 9))
        seen.append((entry.uid, entry.gid))
    assert seen == [(2, 9), (os.geteuid(), os.getegid()), (6, os.getegid()), (1, 0)]


def test_preset_variables_are_those_of_the_host(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    release = tmp_path / "os-release"
    release.write_text('NAME="Some Linux"\nID=some\nVERSION_ID="4.2"\n')
    monkeypatch.setattr("cvfs.mount.appearance._RELEASES", (tmp_path / "none", release))
    uname = os.uname()
    assert preset_variables() == {"ARCH": uname.machine, "KERNEL": uname.release, "OS": "some", "OSVERSION": "4.2"}
    link = appearance_of(Settings(variables={"OS": "other"})).show(_link(b"$(OS)-$(OSVERSION)"))
    assert link.target == b"other-4.2"
