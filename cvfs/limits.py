"""What a reader refuses for its size alone, before it allocates anything (docs/format.md, section 8)."""

KIB = 1 << 10
MIB = 1 << 20

MAX_BLOB_BYTES = 16 * MIB
"""Of a pack or a page, stored and plain alike: what one fetch may cost a client in memory."""

MAX_PAGE_BYTES = 4 * MIB
"""Of the plain bytes of a page. What the cutting rules allow stays below 3 MiB; a decoded page takes about 20 times
its size in memory when it is made to."""

MAX_MANIFEST_BYTES = 64 * KIB
MAX_ANCESTORS = 256
"""In one manifest. What the rule of format.md asks for is 15 for each hexadecimal digit of the revision's number."""

MAX_TAGS_BYTES = MIB
MAX_TAGS = 2048
MAX_TAG_NAME_CHARACTERS = 64
MAX_NAME_BYTES = 255
MAX_PATH_BYTES = 4095
"""Linux's PATH_MAX less the NUL: no system call could name a longer one."""

MAX_XATTR_NAME_BYTES = 255
MAX_XATTR_VALUE_BYTES = 64 * KIB
MAX_XATTRS_BYTES = 256 * KIB
"""Of all names and values of one entry."""

MAX_OBJECT_BYTES = 1 << 50
MAX_ID = (1 << 32) - 2
"""Of a uid or gid: 2^32-1 means "leave it" to chown(2)."""

MAX_LOCATIONS = 4096
"""In one entry, or in one location page."""

MAX_LEVEL = 16
"""Of a page: no tree that fits the other limits is deeper."""
