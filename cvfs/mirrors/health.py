"""What is known of one way to one server, or of one proxy: does it answer, how fast, and when is it asked again.

Pure: time and dice are arguments. All times are those of one monotonic clock, `dice` is uniform in [0, 1).
"""

import math
from typing import TypeGuard

from cvfs.errors import (
    IntegrityError,
    StatusError,
    TooLargeError,
    TooSlowError,
    TransportError,
    TruncatedError,
    TrustError,
)

FetchError = TransportError | IntegrityError | TrustError

# The breaker opens after this many failures in a row over at least this time: a server that restarts is waited for,
# longer if it has answered before: then it is the network that has a moment's trouble, and a read can wait.
BREAKER_FAILURES = 3
BREAKER_AGE_S = 2.0
PATIENCE_S = 10.0
# How long it stays open at first and at last. The last bounds how soon a recovery is noticed.
BREAKER_OPEN_S = 0.5
BREAKER_MAX_OPEN_S = 5.0
# Then a single request tests the server: that of the network's watch, or if none comes for so long, a reader's.
WATCH_S = 1.0
# If that hangs, the next may try after this.
PROBE_S = 10.0
MAX_RETRY_AFTER_S = 60.0
# Of the latency that is remembered, the part that the newest measurement makes.
_NEWEST = 0.3


class Health:
    """Of one server by one way. `failing`: nothing good has come since the last failure."""

    def __init__(self, patience_s: float = PATIENCE_S) -> None:
        self._patience_s = patience_s
        self.busy_until = 0.0
        self.last_error: TransportError | None = None
        self.latency_s: float | None = None
        """Moving average; None before it was measured."""
        self.failing = self.answered = False
        self.probe_at = math.inf
        """When somebody should see whether it answers again."""
        self._failures = 0
        self._failing_since = 0.0
        self._open_until = 0.0
        self._open_s = 0.0
        self._probing_until = 0.0

    def is_open(self, now: float) -> bool:
        """Whether it must not be asked: its breaker is open, or somebody tests it just now."""
        return self._open_s > 0 and now < max(self._open_until + WATCH_S, self._probing_until)

    def begin(self, now: float) -> None:
        """A request starts."""
        if self._open_s:
            self._probing_until = now + PROBE_S

    def abandon(self) -> None:
        """A request ended without a result, because its caller left."""
        self._probing_until = 0.0

    def record_success(self) -> None:
        """It answered, with whatever: it is alive."""
        self.answered = True
        if self.failing:
            self.failing, self.probe_at = False, math.inf
            self._failures, self._open_s, self._open_until, self._probing_until = 0, 0.0, 0.0, 0.0

    def record_failure(self, error: TransportError, now: float, dice: float) -> None:
        """A request failed with `error`, one that `blames_server`."""
        self.last_error = error
        self._probing_until = 0.0
        self._count_failure(now, dice)
        if isinstance(error, StatusError) and error.retry_after_s is not None:
            # All that were told the same must not come back at the same moment.
            self.busy_until = now + min(error.retry_after_s, MAX_RETRY_AFTER_S) * (1 + dice / 4)
            self.probe_at = max(self.probe_at, self.busy_until)

    def observe(self, latency_s: float) -> None:
        """An answer took `latency_s`."""
        before = latency_s if self.latency_s is None else self.latency_s
        self.latency_s = before + (latency_s - before) * _NEWEST

    def describe(self, now: float) -> str:
        """One word: unknown, ok, failing, down (not asked at all), or busy (asked to be left alone)."""
        if self.failing:
            return "down" if self._open_s else "failing"
        if now < self.busy_until:
            return "busy"
        return "ok" if self.answered else "unknown"

    def _count_failure(self, now: float, dice: float) -> None:
        if not self.failing:
            self.failing, self._failing_since = True, now
        self._failures += 1
        patience_s = self._patience_s if self.answered else min(self._patience_s, BREAKER_AGE_S)
        persistent = self._failures >= BREAKER_FAILURES and now - self._failing_since >= patience_s
        if persistent and now >= self._open_until:  # not once more for each of many that failed together
            self._open_s = min(self._open_s * 2 or BREAKER_OPEN_S, BREAKER_MAX_OPEN_S)
            self._open_until = now + self._open_s * (0.75 + dice / 4)
        self.probe_at = self._open_until if self._open_s else now + BREAKER_OPEN_S * (0.75 + dice / 4)


def blames_server(error: FetchError) -> TypeGuard[TransportError]:
    """Whether `error` speaks against all that the server has, not only against one answer."""
    match error:
        case IntegrityError() | TrustError() | TooLargeError() | TruncatedError():
            return False
        case TooSlowError():
            return error.asked and error.received_bytes == 0  # a slow server is not a dead server
        case StatusError():
            return error.retryable
        case _:
            return True
