"""Packs as they are filled, and where the contents of files are or will be. No thread, no file."""
