"""The repository in a store: its head, its revisions, their pages and subtrees, tags."""
