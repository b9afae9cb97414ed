"""What a publish did, for people."""

from cvfs.terminal import show_count, show_size
from publisher.publishing.report import Report


def summary(report: Report) -> str:
    """The summary of a publish, for people: a few lines."""
    counts, changes = report.counts, report.changes
    seconds = max(report.seconds, 1e-3)
    new, changed, removed, same = changes.new, changes.changed, changes.removed, changes.unchanged
    packs, pages = show_count(counts.packs, "new pack"), show_count(counts.pages, "new page")
    saved, squeezed = show_size(counts.saved_by_dedup_bytes), show_size(counts.saved_by_compression_bytes)
    rate = f"{counts.files / seconds:,.0f} files/s, {show_size(int(counts.tree_bytes / seconds))}/s"
    lines = [
        _headline(report),
        f"  files   {new:,} new, {changed:,} changed, {removed:,} removed, {same:,} unchanged",
        f"  read    {show_size(counts.read_bytes)} of {show_count(counts.files_read, 'file')}",
        f"  stored  {show_size(counts.stored_bytes)} in {packs} and {pages}",
        f"  saved   {saved} by deduplication, {squeezed} by compression",
        f"  took    {report.seconds:.2f} s: {rate}",
    ]
    if report.is_repair:
        lines.insert(1, "  repair  files have not changed; packs that the store had lost are made again")
    return "\n".join(lines)


def _headline(report: Report) -> str:
    if report.is_published:
        return f"Published revision {report.revision} of {report.repository}"
    if report.changes.is_any or report.is_repair:
        return f"Would publish revision {report.revision + 1} of {report.repository} (dry run)"
    return f"Nothing has changed: {report.repository} stays at revision {report.revision}"
