"""What a mount shows outlives the directory in which its workers tell each other."""

import shutil
from pathlib import Path

import pytest

from cvfs.mount.shown import Shown
from tests.small_store import SmallStore


def test_a_lost_runtime_directory_costs_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    store = SmallStore(tmp_path / "store")
    first, second = store.publish({b"a": b"1"}), store.publish({b"a": b"2"})
    runtime = tmp_path / "runtime"
    runtime.mkdir()
    shown = Shown(runtime / "mount.shown")
    assert shown.claim("one", first) == first
    shutil.rmtree(runtime)
    assert shown.manifest("one") == first
    shown.switch("one", second, first)
    assert (shown.claim("one", first), shown.previous("one")) == (second, first)
    shown.settle("one")
    shown.settle("another")
    assert (shown.manifest("one"), shown.previous("one"), shown.names()) == (second, None, ["one"])
    assert "other workers cannot be told what is shown" in caplog.text


def test_nobody_goes_back(tmp_path: Path) -> None:
    """Two workers look for what is new, as during a reload: the slower one had an older answer."""
    store = SmallStore(tmp_path / "store")
    first, second, third = (store.publish({b"a": b"%d" % number}) for number in range(3))
    one, other = Shown(tmp_path / "mount.shown"), Shown(tmp_path / "mount.shown")
    assert one.claim("x", first) == first
    assert other.switch("x", third, first)
    assert not one.switch("x", second, first)
    assert one.switch("x", third, first), "who finishes a switch says it again"
    assert (one.manifest("x"), one.previous("x")) == (third, first)
