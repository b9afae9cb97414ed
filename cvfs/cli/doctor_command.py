"""cvfs doctor."""

import sys
from collections.abc import Iterator
from dataclasses import asdict
from typing import TYPE_CHECKING

import click

from cvfs import terminal
from cvfs.cli import common
from cvfs.errors import ConfigError

if TYPE_CHECKING:
    from cvfs.mount.findings import Finding


@click.command("doctor", epilog="Example: cvfs doctor software.example.org")
@click.argument("url", metavar="[URL]", required=False)
@click.option("--json", "as_json", is_flag=True, help="All findings, as one JSON object.")
@common.storage_options
def command(url: str | None, as_json: bool) -> None:
    """Test all that mounts of this host stand on; with URL (an address, a configured name, or a directory that is
    mounted) the way to that repository too.

    The exit status is 0 if nothing failed. What failed is said with what to do about it.
    """
    findings = []
    for finding in _examine(url):
        findings.append(finding)
        if not as_json:
            _print(finding)
    if as_json:
        terminal.print_json({"findings": [asdict(finding) for finding in findings]})
    if any(finding.state == "failed" for finding in findings):
        sys.exit(1)


def _examine(url: str | None) -> Iterator["Finding"]:
    from cvfs.mount.doctor import examine_host, examine_repository
    from cvfs.mount.findings import Finding

    try:
        yield from examine_host(common.host_settings())
        if url is None:
            return
        from cvfs.cli.located import find_repository

        address, settings = common.locate(find_repository(url, ())[0])
    except ConfigError as error:
        yield Finding("configuration", "failed", str(error), "mend what it names; cvfs config show says what holds")
        return

    async def examine() -> list[Finding]:
        return [finding async for finding in examine_repository(address, settings)]

    yield from common.run(examine)


def _print(finding: "Finding") -> None:
    line = f"{finding.state:<8} {finding.test}: {finding.says}"
    click.echo(common.printable(line.encode(errors="surrogateescape"), escape=True))
    if finding.state != "ok" and finding.remedy:
        click.echo(f"         -> {finding.remedy}")
