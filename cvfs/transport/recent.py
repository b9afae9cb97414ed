"""What is remembered of hosts, of which a server can name ever new ones: by redirects."""

import threading
from typing import Generic, TypeVar

K = TypeVar("K")
V = TypeVar("V")

MOST = 256
"""More than a host has mirrors and proxies."""


class Recent(Generic[K, V]):
    """The values of the last `MOST` keys that were put in. For many threads."""

    def __init__(self) -> None:
        self._values: dict[K, V] = {}
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._values)

    def get(self, key: K) -> V | None:
        return self._values.get(key)

    def put(self, key: K, value: V) -> None:
        with self._lock:
            self._values.pop(key, None)
            self._values[key] = value
            if len(self._values) > MOST:
                del self._values[next(iter(self._values))]
