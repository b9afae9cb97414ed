"""Tests that are coroutines."""

import functools
from collections.abc import Awaitable, Callable
from typing import ParamSpec

import trio

P = ParamSpec("P")


def in_trio(test: Callable[P, Awaitable[None]]) -> Callable[P, None]:
    """The test, run by trio; it is given its fixtures as others are."""

    @functools.wraps(test)
    def run(*args: P.args, **kwargs: P.kwargs) -> None:
        trio.run(functools.partial(test, *args, **kwargs))

    return run
