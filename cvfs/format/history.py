"""Earlier revisions, found in few steps: which ancestors a manifest names, and which of them to read next.

A manifest of revision R names, for each k, the multiples of 16^k from the last multiple of 16^(k+1) before R on. So
any of N revisions is at most log16(N) manifests away, and what R names is found in its parent (docs/format.md,
section 7).
"""

from collections.abc import Callable

from cvfs.errors import FormatError
from cvfs.model import Ancestor, BlobRef, Manifest

_BASE = 16

Compare = Callable[[Ancestor], int]
"""How a revision stands to the wanted one: 1 later, 0 it is it, -1 not later. All after a later one are later."""


def ancestors_after(parent: Manifest, ref: BlobRef) -> tuple[Ancestor, ...]:
    """What the revision after `parent`, whose manifest is stored as `ref`, has to name."""
    candidates = (*parent.ancestors, Ancestor(parent.revision, parent.published_s, ref))
    return tuple(each for each in candidates if _is_named(each.revision, parent.revision))


def _is_named(number: int, last: int) -> bool:
    """Whether `number` is a multiple of 16^k not before the last multiple of 16^(k+1), for any k."""
    step = 1
    while step <= last:
        if number % step == 0 and number >= last - last % (step * _BASE):
            return True
        step *= _BASE
    return number == last


def next_step(manifest: Manifest, compare: Compare) -> Ancestor | None:
    """What to read next in search of the last revision that is not later than the wanted one; `manifest` itself is.

    Either what is wanted, or one that is later too and nearer; None if all there are are later.
    """
    earlier = later = None
    for each in manifest.ancestors:
        order = compare(each)
        if order == 0:
            return each
        if order > 0:
            later = each
            break
        earlier = each
    if later is None:
        return earlier or _parent_of(manifest)
    return earlier if earlier is not None and later.revision == earlier.revision + 1 else later


def _parent_of(manifest: Manifest) -> Ancestor | None:
    """For a writer that names no ancestors: all that is known of the parent is where it is."""
    return None if manifest.parent is None else Ancestor(manifest.revision - 1, manifest.published_s, manifest.parent)


def check_step(manifest: Manifest, found: Manifest, step: Ancestor) -> None:
    """Raise FormatError unless `found` is what `manifest` said of it. Each step leads to an earlier revision."""
    is_said = not manifest.ancestors or (found.revision, found.published_s) == (step.revision, step.published_s)
    if not is_said or found.revision >= manifest.revision or found.repository != manifest.repository:
        raise FormatError(f"revision {manifest.revision} of {manifest.repository} names what is not an earlier one")
