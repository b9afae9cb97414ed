"""The FUSE kernel protocol, 7.31 to 7.45, as pure functions between bytes and frozen values: no descriptor, no clock.

The layouts are those of the kernel's `include/uapi/linux/fuse.h`; each function and value names its struct there. All
numbers are in the byte order of the host. What a read-only file system never meets is named (`codes.Opcode`) but has no
decoder: it is answered with an errno.

`codes`: opcodes, flags, limits and ioctl numbers. `requests`: what is read from the descriptor, and `bodies`: the
values it becomes. `replies` and `notices`: what is written to it. `negotiation`: INIT, and what
both sides then know of each other.

A request is one `bytes` object, as `os.read(descriptor, codes.READ_BUFFER_BYTES)` returns it. Decoders raise
FormatError for anything that the kernel would not send, and nothing else; they allocate no more than a request holds.
"""
