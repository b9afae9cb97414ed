"""How the workers of a mount put their counts together: in the one that is asked for the status.

Each writes what it has counted into a file of its slot, since it may be more than a message between processes can be,
and says that it has. The worker that is asked adds that to its own, and keeps the whole in one more file for its
successor: counts go on whichever worker dies. What one has counted after it was asked last is lost with it.
"""

import json
import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

import trio

from cvfs.fuse.link import Message
from cvfs.mount.sums import Counts, WorkerCounts, add_counts, counts_of

PATIENCE_S: Final = 0.5
"""For the other workers to say what they have counted: whoever asks for the status has little patience."""


class Counting:
    """One worker's part in it: that of `slot` of `count`. Files begin with `stem`; `status` is what this worker says of
    itself, `tell` sends a message to all other workers."""

    def __init__(
        self, stem: Path, slot: int, count: int, status: Callable[[], dict[str, Any]], tell: Callable[[Message], None]
    ) -> None:
        self._stem, self._slot, self._count = stem, slot, count
        self._status, self._tell = status, tell
        self._name = f"{os.getpid()}-{os.urandom(4).hex()}"  # a number alone may be that of a worker which has ended
        self._tally = WorkerCounts(_read(_whole(stem)))
        self._rounds: dict[int, _Round] = {}
        self._begun = 0

    async def whole_status(self) -> dict[str, Any]:
        """What this worker says, with what the others have counted, or had when they said so last. "workers" is how
        many there are that answer."""
        silent = await self._ask_others()
        status = self._status()
        self._tally.record(self._name, counts_of(status))
        self._tally.bury(_is_alive)
        _write(_whole(self._stem), self._tally.known)
        add_counts(status, self._tally.others(self._name))
        status["workers"] = self._count - silent
        return status

    def answer(self, message: Message) -> None:
        """Somebody asks all others what they have counted. Where it cannot be written, this one counts as silent."""
        with suppress(OSError):
            _write_or_raise(_of_slot(self._stem, self._slot), {self._name: counts_of(self._status())})
            self._tell({"type": "counts", "slot": self._slot, "round": message["round"]})

    def take(self, message: Message) -> None:
        """Another worker has answered: perhaps not this one, and perhaps too late."""
        for worker, counts in _read(_of_slot(self._stem, message["slot"])).items():
            self._tally.record(worker, counts)
        asked_by, number = message["round"]
        if asked_by == self._name and number in self._rounds:
            self._rounds[number].hear(message["slot"])

    async def _ask_others(self) -> int:
        """How many do not answer. Also where there is only one slot: during a reload there are two workers in it."""
        self._begun += 1
        number, asked = self._begun, _Round(set(range(self._count)) - {self._slot})
        self._rounds[number] = asked
        self._tell({"type": "count", "round": [self._name, number]})
        try:
            if asked.silent:
                with trio.move_on_after(PATIENCE_S):
                    await asked.all_said.wait()
        finally:
            del self._rounds[number]
        return len(asked.silent)


class _Round:
    """One time that all others are asked; `silent` are the slots that have not answered yet."""

    def __init__(self, silent: set[int]) -> None:
        self.silent, self.all_said = silent, trio.Event()

    def hear(self, slot: int) -> None:
        self.silent.discard(slot)
        if not self.silent:
            self.all_said.set()


def files(stem: Path, count: int) -> list[Path]:
    """All files of a mount with `count` workers."""
    return [_whole(stem), *(_of_slot(stem, slot) for slot in range(count))]


def _whole(stem: Path) -> Path:
    return stem.with_suffix(".counts")


def _of_slot(stem: Path, slot: int) -> Path:
    return stem.with_suffix(f".counts{slot}")


def _read(path: Path) -> dict[str, Counts]:
    """Nothing, if there is nothing yet, or the directory has gone."""
    with suppress(OSError, ValueError):
        found: dict[str, Counts] = json.loads(path.read_bytes())
        return found
    return {}


def _write(path: Path, known: dict[str, Counts]) -> None:
    with suppress(OSError):
        _write_or_raise(path, known)


def _write_or_raise(path: Path, known: dict[str, Counts]) -> None:
    """As a whole: a worker may be killed at any time. Not durable: it is worth nothing without the mount."""
    temporary = path.with_name(f"{path.name}.{os.getpid()}")
    temporary.write_text(json.dumps(known))
    temporary.rename(path)


def _is_alive(worker: str) -> bool:
    try:
        os.kill(int(worker.partition("-")[0]), 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True
