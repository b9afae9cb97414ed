"""The file system at the kernel: the FUSE protocol, mounts, and the engines that answer requests."""
