"""Whether something is being done, for those who wait for a pause."""

import trio


class Activity:
    def __init__(self) -> None:
        self._noted = trio.Event()

    @property
    def goes_on(self) -> bool:
        """Whether something was done since the last pause was found."""
        return self._noted.is_set()

    def note(self) -> None:
        """Something was done."""
        self._noted.set()

    async def wait_for_pause(self, pause_s: float) -> None:
        """Return once something was done, and then nothing for `pause_s`. No timer runs before."""
        await self._noted.wait()
        while self._noted.is_set():
            self._noted = trio.Event()
            await trio.sleep(pause_s)
