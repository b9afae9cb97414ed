"""Repositories for one command of a plain user: mounted in namespaces of its own, which end with it."""
