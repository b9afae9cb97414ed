"""The last things used, within a budget."""

from collections import OrderedDict
from collections.abc import Hashable, Iterator
from typing import Generic, TypeVar

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")


class Memory(Generic[K, V]):
    """A mapping that forgets what was used least recently once the weights in it add up to more than `budget`."""

    def __init__(self, budget: int) -> None:
        self.budget = budget
        self.weight = 0
        self._items: OrderedDict[K, tuple[V, int]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._items)

    def get(self, key: K) -> V | None:
        item = self._items.get(key)
        if item is None:
            return None
        self._items.move_to_end(key)
        return item[0]

    def put(self, key: K, value: V, weight: int) -> None:
        """Hold `value`; what alone outweighs the budget is held until the next one comes."""
        self.drop(key)
        while self._items and self.weight + weight > self.budget:
            _, (_, freed) = self._items.popitem(last=False)
            self.weight -= freed
        self._items[key] = value, weight
        self.weight += weight

    def drop(self, key: K) -> None:
        item = self._items.pop(key, None)
        if item is not None:
            self.weight -= item[1]

    def __iter__(self) -> Iterator[K]:
        return iter(self._items)

    def values(self) -> Iterator[V]:
        """All that is held; to look at it is no use of it."""
        return (value for value, _ in self._items.values())

    def clear(self) -> None:
        self._items.clear()
        self.weight = 0
