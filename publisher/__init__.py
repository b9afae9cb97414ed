"""The publisher: a directory tree and a parent revision in, packs, pages and a new revision out."""
