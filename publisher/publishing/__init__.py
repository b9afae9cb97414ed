"""A tree and a parent revision in, packs, pages and a new revision out."""
