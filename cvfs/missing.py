"""Questions that are answered from memory, and what they may find missing there."""

from abc import abstractmethod
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


class Missing(Exception):
    """Something that a question needs is not in memory."""

    @abstractmethod
    async def bring(self) -> None:
        """Have it in memory. Raises what stands in the way."""


async def bring(question: Callable[[], T]) -> T:
    """The answer to a `nowait` question, with everything brought that it turns out to need.

    Raises what the question raises, and what stands in the way of bringing something. Not a checkpoint if the answer
    was in memory.
    """
    while True:
        try:
            return question()
        except Missing as missing:
            await missing.bring()
