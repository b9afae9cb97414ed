"""The Merkle search tree of a revision: build, look up, compare (docs/format.md, section 4). Pure: pages come and go
through the functions that the caller passes in."""

from cvfs.format.tree.build import Root, build, edit
from cvfs.format.tree.diff import diff
from cvfs.format.tree.lookup import Load, Tree

__all__ = ["Load", "Root", "Tree", "build", "diff", "edit"]
