"""Many mirrors of one repository, and all retries there are: what to ask next, after which error, until when.

`Health` (one mirror's) and `Plan` (one fetch's) decide without I/O, time and dice are arguments. `Mirrors` acts.

Errors fall in two kinds. Those of the *mirror* (unreachable, hangs, 5xx, 429) speak against all that it has: the fetch
goes on elsewhere or waits and asks again, and a mirror that has failed for a while is left alone for seconds (the
breaker), so that reads of what is not cached fail at once while it is dead. Those of the *object* (wrong bytes, wrong
size, 404) speak against this one answer: another mirror, or the same one past its caches, and then the error.
"""

import logging
import random
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TypeGuard, TypeVar

import trio

from cvfs.errors import (
    ConfigError,
    ExpiredError,
    IntegrityError,
    StatusError,
    TooLargeError,
    TooSlowError,
    TransportError,
    TruncatedError,
    TrustError,
    UnreachableError,
)
from cvfs.format import blob
from cvfs.model import BlobRef
from cvfs.transport import Response, Transport, check_base_url

_log = logging.getLogger(__name__)

FetchError = TransportError | IntegrityError | TrustError
T = TypeVar("T")

BACKOFF_S = 0.1
MAX_BACKOFF_S = 2.0
# The breaker opens after this many failures in a row over at least this time: a server that restarts is waited for.
BREAKER_FAILURES = 3
BREAKER_AGE_S = 2.0
# How long it stays open at first and at last. The last bounds how soon a recovery is noticed.
BREAKER_OPEN_S = 0.5
BREAKER_MAX_OPEN_S = 5.0
# A single request tests a mirror whose time is up. If it hangs, the next may try after this.
PROBE_S = 10.0
DISTRUST_S = 60.0
MAX_RETRY_AFTER_S = 60.0
# With another mirror at hand no single one gets more than this share of the time that is left.
SHARE = 0.5


class Health:
    """What is known of one mirror. All times are those of one monotonic clock, `dice` is uniform in [0, 1)."""

    def __init__(self) -> None:
        self.busy_until = 0.0
        self.distrusted_until = 0.0
        self.last_error: TransportError | None = None
        self._failures = 0
        self._failing_since = 0.0
        self._open_until = 0.0
        self._open_s = 0.0
        self._probing_until = 0.0

    def is_open(self, now: float) -> bool:
        """Whether it must not be asked: its breaker is open, or somebody tests it just now."""
        return now < self._open_until or now < self._probing_until

    def begin(self, now: float) -> None:
        """A request starts."""
        if self._open_s:
            self._probing_until = now + PROBE_S

    def abandon(self) -> None:
        """A request ended without a result, because its caller left."""
        self._probing_until = 0.0

    def record_success(self) -> None:
        """It answered, with whatever: it is alive."""
        self._failures, self._open_s, self._open_until, self._probing_until = 0, 0.0, 0.0, 0.0

    def record_failure(self, error: FetchError, now: float, dice: float) -> None:
        """A request failed with `error`."""
        if not _blames_mirror(error):
            self.record_success()
            if _is_suspicious(error):
                self.distrusted_until = now + DISTRUST_S
            return
        self.last_error = error
        self._probing_until = 0.0
        self._count_failure(now, dice)
        if isinstance(error, StatusError) and error.retry_after_s is not None:
            self.busy_until = now + min(error.retry_after_s, MAX_RETRY_AFTER_S)

    def _count_failure(self, now: float, dice: float) -> None:
        if not self._failures:
            self._failing_since = now
        self._failures += 1
        persistent = self._failures >= BREAKER_FAILURES and now - self._failing_since >= BREAKER_AGE_S
        if persistent and now >= self._open_until:  # not once more for each of many that failed together
            self._open_s = min(self._open_s * 2 or BREAKER_OPEN_S, BREAKER_MAX_OPEN_S)
            self._open_until = now + self._open_s * (0.75 + dice / 4)


@dataclass(frozen=True, slots=True)
class Try:
    """Ask mirror number `mirror` now, for at most `deadline_s`; `fresh`: past all caches on the way."""

    mirror: int
    fresh: bool
    deadline_s: float


@dataclass(frozen=True, slots=True)
class Wait:
    """Nothing can be asked for `delay_s`."""

    delay_s: float


class Plan:
    """The course of one fetch over the mirrors with these `healths`, in order of preference, until `deadline`."""

    def __init__(self, healths: Sequence[Health], deadline: float) -> None:
        self._healths = healths
        self._deadline = deadline
        self._failures = [0] * len(healths)
        self._exhausted = [False] * len(healths)
        self._fresh = [False] * len(healths)
        self._not_before = [0.0] * len(healths)
        self.error: FetchError | None = None

    def decide(self, now: float) -> Try | Wait | None:
        """What to do next; None: nothing more can help before the deadline."""
        usable = [m for m, health in enumerate(self._healths) if not (self._exhausted[m] or health.is_open(now))]
        if not usable or now >= self._deadline:
            return None
        ready = [m for m in usable if self._ready_at(m) <= now]
        if ready:
            best = min(ready, key=partial(self._rank, now))
            share = SHARE if len(usable) > 1 else 1.0
            return Try(best, self._fresh[best], (self._deadline - now) * share)
        wake_up = min(map(self._ready_at, usable))
        return Wait(wake_up - now) if wake_up < self._deadline else None

    def record_failure(self, mirror: int, error: FetchError, now: float, dice: float) -> None:
        """The last Try of `mirror` ended in `error`."""
        self.error = error
        self._healths[mirror].record_failure(error, now, dice)
        self._failures[mirror] += 1
        backoff_s = min(BACKOFF_S * 2 ** (self._failures[mirror] - 1), MAX_BACKOFF_S) * (0.5 + dice / 2)
        if not _blames_mirror(error):
            # Once more at once and past the caches: a proxy may have kept a damaged answer.
            backoff_s = 0.0
            self._exhausted[mirror] = self._fresh[mirror] or isinstance(error, StatusError)
            self._fresh[mirror] = True
        self._not_before[mirror] = now + backoff_s

    def _ready_at(self, mirror: int) -> float:
        return max(self._not_before[mirror], self._healths[mirror].busy_until)

    def _rank(self, now: float, mirror: int) -> tuple[int, bool, int]:
        return self._failures[mirror], now < self._healths[mirror].distrusted_until, mirror


def _blames_mirror(error: FetchError) -> TypeGuard[TransportError]:
    match error:
        case IntegrityError() | TrustError() | TooLargeError() | TruncatedError():
            return False
        case TooSlowError():
            return error.received_bytes == 0  # a slow server is not a dead server
        case StatusError():
            return error.retryable
        case _:
            return True


def _is_suspicious(error: FetchError) -> bool:
    """Whether the mirror gave something false; what has expired may be all that the publisher has made."""
    return isinstance(error, IntegrityError | TrustError) and not isinstance(error, ExpiredError)


class Source:
    """One mirror, for one course of questions to it that together end `deadline_s` after it was made."""

    def __init__(self, transport: Transport, base_url: str, step: Try) -> None:
        self._transport, self.url, self._fresh = transport, base_url, step.fresh
        self._deadline = time.monotonic() + step.deadline_s

    async def get(self, name: str, *, max_bytes: int, etag: str | None = None) -> Response:
        """The mutable file `name`, unless it is still what `etag` names. Nothing of it is verified.

        Raises TransportError, IntegrityError. Always a checkpoint; cancelled: nothing is left behind.
        """
        left_s = max(0.0, self._deadline - time.monotonic())
        url = f"{self.url}/{name}"
        return await self._transport.get(url, max_bytes=max_bytes, etag=etag, deadline_s=left_s, fresh=self._fresh)


class Mirrors:
    """The mirrors of one repository, the preferred one first, asked through `transport`.

    Raises ConfigError: no address, or one that cannot be used.
    """

    def __init__(
        self,
        transport: Transport,
        base_urls: Sequence[str],
        *,
        clock: Callable[[], float] = time.monotonic,
        dice: Callable[[], float] = random.random,
    ) -> None:
        if not base_urls:
            raise ConfigError("a repository needs the address of at least one mirror")
        self._transport = transport
        self._base_urls = [check_base_url(url) for url in base_urls]
        self._healths = [Health() for _ in base_urls]
        self._clock, self._dice = clock, dice

    async def fetch_blob(self, ref: BlobRef, deadline_s: float) -> bytes:
        """The stored bytes that `ref` names; their size and hash have been checked, in the worker thread.

        Raises TransportError or IntegrityError, that of the last try, `deadline_s` from now at the latest, and at once
        while no mirror answers. Always a checkpoint; cancelled: nothing is left behind.
        """
        get = partial(
            self._transport.get,
            max_bytes=ref.stored_size,
            exact_bytes=ref.stored_size,
            check=partial(blob.check, ref),
        )
        return (await self._fetch(blob.blob_path(ref.id), get, deadline_s)).data

    async def consult(self, work: Callable[[Source], Awaitable[T]], deadline_s: float) -> T:
        """What `work` makes of one mirror, or of another if it raises TransportError, IntegrityError or TrustError.

        For what is more than one file, or can be judged only by the caller. Raises the error of the last try; anything
        else that `work` raises ends it at once. Cancelled: nothing is left behind.
        """

        def ask(step: Try) -> Awaitable[T]:
            return work(Source(self._transport, self._base_urls[step.mirror], step))

        return await self._attempt(ask, deadline_s)

    async def _fetch(self, name: str, get: Callable[..., Awaitable[Response]], deadline_s: float) -> Response:
        def ask(step: Try) -> Awaitable[Response]:
            return get(f"{self._base_urls[step.mirror]}/{name}", deadline_s=step.deadline_s, fresh=step.fresh)

        return await self._attempt(ask, deadline_s)

    async def _attempt(self, ask: Callable[[Try], Awaitable[T]], deadline_s: float) -> T:
        plan = Plan(self._healths, self._clock() + deadline_s)
        while step := plan.decide(self._clock()):
            if isinstance(step, Wait):
                await trio.sleep(step.delay_s)
                continue
            try:
                return await self._try(step, ask)
            except (TransportError, IntegrityError, TrustError) as error:
                _log.log(logging.WARNING if isinstance(error, IntegrityError) else logging.DEBUG, "%s", error)
                plan.record_failure(step.mirror, error, self._clock(), self._dice())
        await trio.lowlevel.checkpoint()
        raise plan.error or self._refuse()

    async def _try(self, step: Try, ask: Callable[[Try], Awaitable[T]]) -> T:
        health = self._healths[step.mirror]
        health.begin(self._clock())
        try:
            answer = await ask(step)
        except (TransportError, IntegrityError, TrustError):
            raise
        except BaseException:
            health.abandon()
            raise
        health.record_success()
        return answer

    def _refuse(self) -> UnreachableError:
        """The error for a fetch that asked nobody: all breakers are open, or its deadline had passed before."""
        last = next((health.last_error for health in self._healths if health.last_error), None)
        reason = f"not asked: no mirror answers ({last.reason})" if last else "not asked: no time was left"
        return UnreachableError(self._base_urls[0], reason)
