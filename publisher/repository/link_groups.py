"""Files of several names: a number for each, the same wherever a tree is published."""

import xxhash


def link_group_number(path: bytes) -> int:
    """The number of the link group whose first name is `path`: 63 bits, not 0."""
    return (xxhash.xxh3_64_intdigest(path) & ((1 << 63) - 1)) or 1
