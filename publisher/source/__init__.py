"""The directory tree that is published: its names in order, entries, and the bytes of its files."""
