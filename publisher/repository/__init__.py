"""The repository in a store: its head, its revisions and their pages, tags."""
