"""What is fetched before anyone asks for it: the policy, apart from the mechanism (`packs`).

One pack ahead, and only of who reads packs in their order: that hides the way to a near server, and costs who reads
here and there nothing. More than one pack, for a server that is far away, needs to know how far.
"""

from cvfs.cache.memory import Memory
from cvfs.model import Digest
from cvfs.pieces import Around, Pack


def follows(around: Around, packs: Memory[Digest, Pack]) -> bool:
    """Whether the pack before the one that is read now was read lately: it is still among those in memory."""
    before = around.previous_pack()
    pack = None if before is None else packs.get(before.id)
    return pack is not None and pack.was_read
