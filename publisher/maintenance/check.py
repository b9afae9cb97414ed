"""Checking a store: every blob that the newest revision, or all, speak of is there, and is what its id says."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import msgspec

from cvfs.errors import CvfsError
from cvfs.format.pages import LocationPage
from cvfs.model import BlobRef, Record
from publisher.repository.head import read_head
from publisher.repository.history import read_blob, revisions
from publisher.repository.pages import PageLoader
from publisher.repository.reachability import ReachableBlobs, add_complete, is_kept
from publisher.store import Store

_BATCH = 64


class CheckReport(msgspec.Struct, frozen=True):
    """What was looked at, and a line for each blob that is missing or wrong. Pages are checked before packs.

    `entries` are those of `revision`, the newest; `older`: how many others were read too.
    """

    repository: str
    revision: int
    entries: int
    packs: int
    bytes_checked: int
    errors: list[str]
    older: int = 0


def check(store: Store, workers: int, *, has_all: bool = False) -> CheckReport:
    """Read the whole newest revision; if it `has_all`, those before too that gc has left.

    Raises CvfsError if the head, a manifest, or a page of the newest tree cannot be read.
    """
    manifest = read_head(store).manifest
    pages = PageLoader(store)
    entries, packs, errors = 0, set[BlobRef](), list[str]()
    for record in pages.tree(manifest).records():
        entries += 1
        try:
            packs.update(_packs(record, pages))
        except CvfsError as error:
            errors.append(str(error))
    reachable, older = ReachableBlobs(store), 0
    for each in revisions(store, manifest) if has_all else ():
        if each.revision != manifest.revision and is_kept(store, each):
            older += 1
            try:
                add_complete(reachable, each)
            except CvfsError as error:
                errors.append(str(error))
    packs |= reachable.packs
    ordered = sorted(packs)
    with ThreadPoolExecutor(workers) as executor:
        for start in range(0, len(ordered), _BATCH):
            found = executor.map(lambda pack: _check_pack(store, pack), ordered[start : start + _BATCH])
            errors.extend(error for error in found if error)
    size_bytes = sum(pack.stored_size for pack in ordered)
    return CheckReport(manifest.repository, manifest.revision, entries, len(ordered), size_bytes, errors, older)


def _packs(record: Record, pages: PageLoader) -> Iterator[BlobRef]:
    for location in record.content.locations:
        yield location.pack
    for _, ref in record.content.location_pages:
        page = pages(ref)
        if isinstance(page, LocationPage):
            for location in page.locations:
                yield location.pack


def _check_pack(store: Store, pack: BlobRef) -> str:
    try:
        read_blob(store, pack)
    except CvfsError as error:
        return str(error)
    return ""
