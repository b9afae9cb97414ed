"""Trees that are published no more: what the stat cache keeps of them is let go."""

import os

import msgspec

from cvfs.format.codec import decoder_of, encode
from publisher.state.index import Index
from publisher.state.stat_cache import tree_key

_DAY_S = 86400

_KEPT_S = 180 * _DAY_S
"""How long a tree is remembered that is still there. A guess: some are published twice a year."""

_KEPT_GONE_S = _DAY_S
"""How long one that is gone is: it may only be unmounted. Builds in ever new directories leave so many."""


class _Seen(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """A tree, and when it was published, to the day."""

    path: bytes
    published_s: int


_SEEN = decoder_of(_Seen)


def note_tree(index: Index, path: bytes, now_s: int) -> None:
    """Take note that a tree is being published. An unchanged one causes no write to the disk, once a day aside."""
    value = index.find_tree(tree_key(path))
    if value is None or abs(now_s - _SEEN.decode(value).published_s) >= _DAY_S:
        index.put_tree(tree_key(path), encode(_Seen(path, now_s)))


def forget_trees(index: Index, now_s: int) -> None:
    """Drop what is kept of trees that have not been published for long, or for a day and are gone.

    To be called last: where a tree was on a file system that does not answer, this waits.
    """
    for key, value in index.trees():
        seen = _SEEN.decode(value)
        age_s = now_s - seen.published_s
        if age_s > _KEPT_S or (age_s > _KEPT_GONE_S and _is_gone(seen.path)):
            index.drop_tree(key)


_look = os.stat


def _is_gone(path: bytes) -> bool:
    """Not if that cannot be told."""
    try:
        _look(path)
    except (FileNotFoundError, NotADirectoryError):
        return True
    except OSError:
        return False
    return False
