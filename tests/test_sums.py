"""What the workers of a mount have counted, put together: over workers that live, end, and have very much to say."""

import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing

from cvfs.fuse.link import MAX_BYTES, Message
from cvfs.mount.counting import Counting, files
from cvfs.mount.metrics import exposition
from cvfs.mount.sums import WorkerCounts, add_counts, counts_of

Status = dict[str, Any]


def status_of(lookups: int, **more: Any) -> Status:
    """What a worker says of itself that has answered so many lookups, and has made a mistake for each."""
    return {
        "mountpoint": "/mnt",
        "state": "ok",
        "revision": 7,
        "requests": {"LOOKUP": lookups},
        "errors": lookups,
        "errors_last_hour": lookups,
        "cache": {"used_bytes": 5, "evicted_bytes": lookups},
        "fetcher": {"hits": lookups},
        "transport": {"requests": lookups, "active": lookups, "errors": {"TooSlowError": lookups} if lookups else {}},
        **more,
    }


def transport(lookups: int, active: int) -> Status:
    return {**status_of(lookups)["transport"], "active": active}


def test_all_that_is_counted_is_summed_and_nothing_else() -> None:
    status = status_of(1)
    add_counts(status, [counts_of(status_of(10)), counts_of(status_of(100))])
    assert status == status_of(111)


def test_a_table_of_nothing_stays_a_table() -> None:
    """Or there would be a sample for an error without a name."""
    for one, other in ((0, 0), (0, 3), (3, 0)):
        status = status_of(one)
        add_counts(status, [counts_of(status_of(other))])
        assert status["transport"]["errors"] == ({"TooSlowError": 3} if one or other else {})
    assert b'error=""' not in exposition([{**status_of(0)}])
    empty = status_of(0)
    add_counts(empty, [{"repositories": {"": {"transport": {"errors": {}}}}}])
    assert empty["transport"]["errors"] == {}


def test_what_those_have_counted_who_have_ended_stays_but_what_goes_down_again() -> None:
    tally = WorkerCounts({})
    tally.record("a", counts_of(status_of(10)))
    tally.record("b", counts_of(status_of(100)))
    tally.record("b", counts_of(status_of(200)))
    for _ in range(2):
        tally.bury(lambda worker: worker != "b")
        status = status_of(1)
        add_counts(status, tally.others("a"))
        assert status == status_of(201, errors_last_hour=1, transport=transport(201, active=1))
    tally.bury(lambda _: False)
    assert list(tally.known) == [""]
    status = status_of(1)
    add_counts(status, WorkerCounts(tally.known).others("c"))
    assert status["requests"] == {"LOOKUP": 211}


class Mount:
    """Workers that tell each other as they would by a supervisor."""

    def __init__(self, stem: Path, count: int) -> None:
        self._stem, self._count = stem, count
        self.workers: dict[int, Counting] = {}
        self.asked: list[Message] = []

    def start(self, slot: int, status: Callable[[], Status]) -> Counting:
        def tell(message: Message) -> None:
            self.asked.append(message)
            others = [one for other, one in self.workers.items() if other != slot]
            for one in others:
                (one.answer if message["type"] == "count" else one.take)(message)

        self.workers[slot] = Counting(self._stem, slot, self._count, status, tell)
        return self.workers[slot]

    def ask(self) -> Status:
        return trio.run(self.workers[0].whole_status, clock=trio.testing.MockClock(autojump_threshold=0))


@pytest.fixture
def mount(tmp_path: Path) -> Mount:
    return Mount(tmp_path / "1234.5.shown", 2)


def test_two_workers_and_their_successors(mount: Mount, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mount.start(0, lambda: status_of(1))
    with subprocess.Popen(["cat"], stdin=subprocess.PIPE) as first:
        with monkeypatch.context() as patch:
            patch.setattr(os, "getpid", lambda: first.pid)
            mount.start(1, lambda: status_of(10))
        assert mount.ask() == mount.ask() == status_of(11, workers=2)
        del mount.workers[1]
        assert mount.ask() == status_of(11, workers=1), "it lives, and is held up"
    mount.start(1, lambda: status_of(100))
    for _ in range(2):
        assert mount.ask() == status_of(111, workers=2, errors_last_hour=101, transport=transport(111, active=101))
    mount.start(0, lambda: status_of(1000))
    assert mount.ask()["requests"] == {"LOOKUP": 1111}
    assert set(tmp_path.iterdir()) <= set(files(tmp_path / "1234.5.shown", 2))


def test_counts_may_be_larger_than_a_message(mount: Mount) -> None:
    def status(lookups: int) -> Status:
        several = [{"name": f"{number:0200}", **status_of(lookups)} for number in range(1000)]
        return {"repositories": several, "requests": {"LOOKUP": lookups}}

    mount.start(0, lambda: status(1))
    mount.start(1, lambda: status(2))
    whole = mount.ask()
    assert whole["workers"] == 2
    assert {each["fetcher"]["hits"] for each in whole["repositories"]} == {3}
    assert max(len(str(message)) for message in mount.asked) < MAX_BYTES // 100


def test_a_runtime_directory_that_is_gone_leaves_what_is_known(mount: Mount, tmp_path: Path) -> None:
    mount.start(0, lambda: status_of(1))
    mount.start(1, lambda: status_of(10))
    mount.ask()
    for path in tmp_path.iterdir():
        path.unlink()
    tmp_path.rmdir()
    assert mount.ask() == status_of(11, workers=1)
    tmp_path.mkdir()
