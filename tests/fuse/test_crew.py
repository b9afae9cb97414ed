"""Who is there, who counts, and who replaces whom: processes that do nothing, templates that do not fork."""

import errno
import os
import socket
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NoReturn

import pytest

from cvfs.fuse import forking, link
from cvfs.fuse.crew import DRAIN_S, START_DEADLINE_S, Crew
from cvfs.fuse.held import Held, remove_files
from cvfs.fuse.options import REQUEST_DEADLINE_S
from cvfs.fuse.processes import Template, WorkerProcess

RESENDS = {"resend": True}


class Fleet:
    """Makes templates, which take every wish and fulfil none, and processes for workers to be."""

    def __init__(self) -> None:
        self._others: list[socket.socket] = []
        self._processes: list[subprocess.Popen[bytes]] = []

    def template(self) -> Template:
        ours, theirs = link.pair()
        self._others.append(theirs)
        return Template(self._process(), ours)

    def serve(self, crew: Crew, slot: int) -> WorkerProcess:
        """A worker that serves a slot."""
        worker = self.start(crew, slot)
        assert crew.admit(worker) == [worker]
        return worker

    def start(self, crew: Crew, slot: int) -> WorkerProcess:
        crew.start(slot)
        return self.forked(crew.workers[-1])

    def forked(self, worker: WorkerProcess) -> WorkerProcess:
        worker.pid = self._process()
        return worker

    def _process(self) -> int:
        self._processes.append(subprocess.Popen(["sleep", "100"]))
        return self._processes[-1].pid

    def is_killed(self, worker: WorkerProcess) -> bool:
        (process,) = [one for one in self._processes if one.pid == worker.pid]
        return process.wait(10) == -9

    def close(self) -> None:
        for process in self._processes:
            process.kill()
            process.wait()
        for other in self._others:
            other.close()


@pytest.fixture
def fleet() -> Iterator[Fleet]:
    fleet = Fleet()
    yield fleet
    fleet.close()


@pytest.fixture
def make(fleet: Fleet) -> Iterator[Callable[..., Crew]]:
    crews: list[Crew] = []

    def make(
        count: int,
        new_template: Callable[[], Template] = fleet.template,
        *,
        resends: bool = True,
        is_mounted: bool = True,
    ) -> Crew:
        held = Held(may_resend=resends)
        if is_mounted:
            held.add({"fuse0": os.open(os.devnull, os.O_RDWR)})
        held.state |= RESENDS
        crews.append(Crew(new_template, fleet.template(), count, held))
        return crews[-1]

    yield make
    for crew in crews:
        crew._held.let_mount_go()
        for one in (*crew.workers, *crew.templates):
            one.socket.close()


@pytest.mark.parametrize("phase", ["starting", "serving", "ending"])
def test_one_that_is_killed_counts_no_more_however_long_it_lives(
    fleet: Fleet, make: Callable[..., Crew], phase: str
) -> None:
    """A process that hangs in its disk outlives SIGKILL."""
    crew = make(1)
    worker = fleet.start(crew, 0)
    worker.enter(phase)
    worker.kill()
    assert worker in crew.workers
    assert (crew.serving, crew.coming, crew.missing(1), crew.is_down) == ([], [], [0], True)
    assert [*crew.deadlines(), *crew.late(worker.since + 1000)] == []
    assert not crew.send({"type": "unmount"})


@pytest.mark.parametrize(("resends", "limit_s"), [(True, DRAIN_S), (False, DRAIN_S + REQUEST_DEADLINE_S)])
def test_who_ends_has_time_for_what_nobody_else_can_be_asked(
    fleet: Fleet, make: Callable[..., Crew], resends: bool, limit_s: float
) -> None:
    crew = make(1, resends=resends)
    worker = fleet.serve(crew, 0)
    worker.finish()
    assert [*crew.deadlines()] == [worker.since + limit_s]
    assert crew.late(worker.since + limit_s - 1) == []
    assert crew.late(worker.since + limit_s + 1) == [worker]


def test_who_does_not_start_is_late_at_last(fleet: Fleet, make: Callable[..., Crew]) -> None:
    crew = make(1)
    worker = fleet.start(crew, 0)
    assert crew.late(worker.since + START_DEADLINE_S + 1) == [worker]


def test_all_take_over_at_once_when_the_last_is_ready(fleet: Fleet, make: Callable[..., Crew]) -> None:
    crew = make(2)
    former = [fleet.serve(crew, slot) for slot in range(2)]
    crew.start_anew()
    first, second = map(fleet.forked, crew.coming)
    assert crew.admit(second) == []
    assert crew.serving == former
    assert crew.admit(first) == [first, second]
    assert crew.serving == [first, second]
    assert [worker.phase for worker in former] == ["ending", "ending"]
    assert not crew.is_reloading


def test_while_nothing_is_mounted_the_first_mounts_and_the_others_come_after_it(
    fleet: Fleet, make: Callable[..., Crew]
) -> None:
    """All would wait for each other: one makes the mount, and what the others are given."""
    crew = make(2, is_mounted=False)
    crew.start_anew()
    (first,) = map(fleet.forked, crew.coming)
    assert crew.admit(first) == [first]
    assert (crew.is_reloading, crew.missing(2)) == (False, [1])


def test_if_one_of_the_new_does_not_start_all_goes_on_as_before(fleet: Fleet, make: Callable[..., Crew]) -> None:
    crew = make(2)
    former = [fleet.serve(crew, slot) for slot in range(2)]
    crew.start_anew()
    first, second = map(fleet.forked, crew.coming)
    crew.admit(first)
    crew.remove(second, may_live=False)
    crew.call_off()
    assert fleet.is_killed(first)
    assert (crew.serving, crew.coming, crew.missing(2)) == (former, [], [])
    assert fleet.start(crew, 0).template is former[0].template


def test_without_a_new_template_all_goes_on_as_before(fleet: Fleet, make: Callable[..., Crew]) -> None:
    crew = make(2, _no_interpreter)
    former = [fleet.serve(crew, slot) for slot in range(2)]
    with pytest.raises(FileNotFoundError):
        crew.start_anew()
    assert (crew.serving, crew.coming, crew.is_reloading) == (former, [], False)
    assert fleet.start(crew, 0).template is former[0].template


def _no_interpreter() -> NoReturn:
    raise FileNotFoundError(errno.ENOENT, "No such file or directory")


def test_nobody_is_started_by_a_template_that_is_gone(fleet: Fleet, make: Callable[..., Crew]) -> None:
    crew = make(1)
    fleet.close()
    with pytest.raises(BrokenPipeError):
        crew.start(0)
    assert crew.workers == []


def test_a_mount_that_is_given_up_is_owed_nothing(fleet: Fleet, make: Callable[..., Crew]) -> None:
    """Else the late end of one of its workers would have the next mount given up too."""
    crew = make(2)
    serving = [fleet.serve(crew, slot) for slot in range(2)]
    assert all(worker.owes for worker in serving)
    crew.dismiss()
    assert not any(worker.owes for worker in serving)


def test_a_template_that_cannot_fork_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse() -> NoReturn:
        raise BlockingIOError(errno.EAGAIN, "Resource temporarily unavailable")

    monkeypatch.setattr(os, "fork", refuse)
    supervisor, template = link.pair()
    ours, theirs = link.pair()
    with supervisor, template, ours:
        forking._fork(template, theirs.detach(), lambda _: None)
        message = link.receive(supervisor)
        assert message is not None
        assert message["type"] == "unforked"
        assert link.receive(ours) is None


def test_files_of_a_mount_are_removed_unless_they_are_of_another(tmp_path: Path) -> None:
    ours, theirs, gone = tmp_path / "ours", tmp_path / "theirs", tmp_path / "gone"
    ours.touch()
    theirs.touch()
    inode = ours.stat().st_ino
    remove_files({str(ours): inode, str(theirs): inode, str(gone): None})
    assert [*tmp_path.iterdir()] == [theirs]


def test_ready_of_a_worker_that_was_given_up_counts_for_nothing(make: Callable[..., Crew], fleet: Fleet) -> None:
    crew = make(2)
    serving = [fleet.serve(crew, slot) for slot in range(2)]
    crew.start_anew()
    new = [fleet.forked(worker) for worker in crew.coming]
    crew.call_off()
    assert all(crew.admit(worker) == [] for worker in new)
    assert crew.serving == serving
    assert all(fleet.is_killed(worker) for worker in new)


def test_what_the_kernel_can_do_is_known_of_each_mount_for_itself() -> None:
    held = Held()
    assert not held.is_initialized
    for _ in range(2):
        held.add({"fuse0": os.open(os.devnull, os.O_RDWR)})
        assert not held.is_initialized  # INIT is still to come
        held.state |= RESENDS
        assert held.is_initialized
        assert held.can_resend
    held.let_mount_go()
    assert not held.is_initialized


def test_descriptor_in_whose_place_another_comes_is_closed() -> None:
    held = Held()
    first, second = (socket.socket(socket.AF_UNIX) for _ in range(2))
    with first, second:
        held.add({"control2": os.dup(first.fileno()), "other": os.dup(first.fileno())})
        before, other = held.descriptors["control2"], held.descriptors["other"]
        held.add({"control2": os.dup(second.fileno())})
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.fstat(before)
        os.fstat(other)
        for descriptor in held.descriptors.values():
            os.close(descriptor)
