"""The local cache: one directory for all repositories, mounts and processes of a user on a host.

Plain objects by content id, sparse files for large ones, packs of small ones as they came, stored pages, and the inode
index. Everything in it can be lost, torn or altered without harm: bytes are verified by BLAKE3 each time they are taken
from the disk.
"""

from cvfs.cache.cache import Cache

__all__ = ["Cache"]
