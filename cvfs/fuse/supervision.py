"""What a supervisor decides by, without a process, a descriptor or a clock: `now` is passed in, in seconds."""

from collections.abc import Iterable
from typing import Final, NamedTuple

PATIENCE_S: Final = 20.0
"""For how long callers wait while there is no worker; then they get EIO."""
SHORT_LIFE_S: Final = 1.0
"""A worker that ends by itself sooner after its start was of no use."""
BACKOFF_S: Final = (0.1, 30.0)
"""How long is waited after the first useless worker, and at most: each time twice as long."""
FAILURES: Final = 3
"""Useless workers one after the other before callers get EIO, and other code is tried."""
FORGOTTEN_S: Final = 600.0
"""A loss so long after the one before begins a new row. In a row, they are three waits for a start apart at most."""
VICTIMS: Final = 20
"""Workers that were killed, one after the other, before any of them could answer anything: as many are bad luck. The
next is taken for the victim of what it is asked, as where one request needs more memory than there is. A guess: it is
two seconds of such deaths, and more than a test or a user kills by hand."""


class Life(NamedTuple):
    """What a worker did before it was lost: for how long it served, whether it has answered anything, and whether it
    was killed by another (SIGKILL) rather than ended by itself."""

    served_s: float = 0.0
    has_answered: bool = False
    was_killed: bool = False


USELESS: Final = Life()
"""Of one that never came to be, or that had to be given up because it did not do what it was there for."""


class Recovery:
    """When the next worker is started after one was lost, and whether callers still wait for it.

    `is_hopeless`: callers get EIO, until a worker serves again.
    """

    def __init__(self, now: float) -> None:
        self.retry_at = 0.0
        self.is_hopeless = False
        self._failures = self._victims = 0
        self._lost_at = now
        self._down_since: float | None = now

    def record_served(self) -> None:
        """A worker is ready."""
        self.is_hopeless = False
        self._down_since = None

    def record_down(self, now: float) -> None:
        """No worker serves any more."""
        if self._down_since is None:
            self._down_since = now

    def record_loss(self, now: float, life: Life, *, is_down: bool) -> None:
        """A worker was lost that nobody had told to end. A useful one is replaced at once, as often as it takes."""
        is_another_row = now - self._lost_at > FORGOTTEN_S
        self._lost_at = now
        if self._was_useful(life):
            self._failures, self.retry_at = 0, now
            return
        if is_another_row:
            self._failures = 0
        first_s, longest_s = BACKOFF_S
        self.retry_at = now + min(first_s * 2.0 ** min(self._failures, 20), longest_s)
        self._failures += 1
        if is_down and self.is_stuck:
            self.is_hopeless = True

    def _was_useful(self, life: Life) -> bool:
        is_victim = life.was_killed and not life.has_answered and life.served_s < SHORT_LIFE_S
        self._victims = self._victims + 1 if is_victim else 0
        if is_victim:
            return self._victims <= VICTIMS
        return life.was_killed or life.served_s >= SHORT_LIFE_S

    @property
    def is_stuck(self) -> bool:
        """Whether workers were useless one after the other: it may be their code."""
        return self._failures >= FAILURES

    @property
    def hopeless_at(self) -> float | None:
        """When callers have waited long enough; None while they do not wait, or have got EIO already."""
        return None if self._down_since is None or self.is_hopeless else self._down_since + PATIENCE_S

    def look(self, now: float) -> bool:
        """Whether it is just now that hope is given up."""
        if self.hopeless_at is None or now < self.hopeless_at:
            return False
        self.is_hopeless = True
        return True


class Vigil:
    """When workers are asked whether they are alive, and who has been silent for too long.

    Every `ping_s` while anything is asked of the mount, never while nothing is: an idle mount wakes nobody. A service
    manager that watches (`watchdog_s` is its patience) wants to hear all the time, so for it they are asked then too.
    """

    def __init__(self, ping_s: float, hang_s: float, watchdog_s: float | None) -> None:
        self._ping_s, self._hang_s = ping_s, hang_s
        self._tick_s = watchdog_s / 3 if watchdog_s else None
        self._ping_at: float | None = None
        self._tick_at: float | None = None

    def begin(self, now: float) -> None:
        """Something is asked of the mount."""
        self._ping_at = now + self._ping_s
        if self._tick_s and self._tick_at is None:
            self._tick_at = now + self._tick_s

    def rest(self) -> None:
        """Nothing is asked of the mount any more."""
        self._ping_at = None

    @property
    def is_resting(self) -> bool:
        return self._ping_at is None

    def due_at(self, silent_since: Iterable[float | None]) -> float | None:
        """When to look again, if the workers have left questions unanswered since these times."""
        hangs = [since + self._hang_s for since in silent_since if since is not None]
        return min([at for at in (self._ping_at, self._tick_at) if at is not None] + hangs, default=None)

    def is_hung(self, silent_since: float | None, now: float) -> bool:
        """Whether who has not answered since then is to be replaced."""
        return silent_since is not None and now >= silent_since + self._hang_s

    def take_ping(self, now: float) -> bool:
        """Whether to ask now; if so, the next time is set."""
        if self._ping_at is None or now < self._ping_at:
            return False
        self._ping_at = now + self._ping_s
        return True

    def take_tick(self, now: float) -> bool:
        """Whether the service manager is to hear now; if so, the next time is set."""
        if self._tick_s is None or self._tick_at is None or now < self._tick_at:
            return False
        self._tick_at = now + self._tick_s
        return True
