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
