"""What signed metadata is called in a store, and how much of it is read."""

DIRECTORY = "metadata"
TIMESTAMP = f"{DIRECTORY}/timestamp.json"
"""The head: the one file of a store that ever changes."""

MANIFEST = "manifest.json"
"""The target that names the newest manifest."""

TAGS = "tags.json"
"""The target that names the tags, where there are any."""

AHEAD_FIELD = "x-cvfs-ahead"
"""In the timestamp: what will be asked for next, so that it can be asked for at once. Only a hint."""

REPOSITORY_FIELD = "x-cvfs-repository"
"""In the root: the name of the repository, so that no key makes one repository of another."""

MAX_ROOT_BYTES = 128 << 10
MAX_TIMESTAMP_BYTES = 16 << 10
MAX_SNAPSHOT_BYTES = 256 << 10
MAX_TARGETS_BYTES = 4 << 20
MAX_ROOT_STEPS = 256
"""New roots that are followed in one refresh, a request for each."""


def metadata_path(role: str, version: int) -> str:
    """Where a store keeps `version` of what `role` has signed, relative to its root; it never changes."""
    return f"{DIRECTORY}/{version}.{role}.json"
