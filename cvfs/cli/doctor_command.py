"""cvfs doctor."""

import sys
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING

import click

from cvfs import terminal
from cvfs.cli import common
from cvfs.config import Settings
from cvfs.errors import ConfigError, MountError

if TYPE_CHECKING:
    from cvfs.mount.findings import Finding


@click.command("doctor", epilog="Example: cvfs doctor software.example.org")
@click.argument("url", metavar="[URL]", required=False)
@click.option("--json", "as_json", is_flag=True, help="All findings, as one JSON object.")
@common.storage_options
def command(url: str | None, as_json: bool) -> None:
    """Test all that mounts of this host stand on; with URL (an address, a configured name, or a directory that is
    mounted) the way to that repository too; in a mount of all, to each of its repositories that is in use.

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
    from cvfs.mount.doctor import MEND_CONFIGURATION, examine_configuration, examine_host
    from cvfs.mount.findings import failed

    try:
        yield from examine_host(common.host_settings())
        yield from examine_configuration(common.configuration())
        if url is None:
            return
        used = _used_in_mount(url)
        repositories = {"": _locate(url)} if used is None else used
    except ConfigError as error:
        yield failed("configuration", str(error), MEND_CONFIGURATION)
        return
    except MountError as error:
        yield failed("repository", str(error), "name one of its repositories: an address, a name, or its directory")
        return
    for name, (address, settings) in repositories.items():
        for finding in _examine_repository(address, settings):
            yield replace(finding, test=f"{name}: {finding.test}") if name else finding


def _used_in_mount(text: str) -> dict[str, tuple[str, Settings]] | None:
    """Address and settings of each repository in use, by name; None if `text` is not the directory of a mount of all.

    A mount that does not answer has none: that it does not is among what was found of the host.
    """
    from cvfs.mount.mounted import ALL
    from cvfs.mount.overview import mount_at
    from cvfs.mount.runtime import Runtime
    from cvfs.mount.sites import ConfiguredSites

    if "://" in text or common.configuration().has(text):
        return None
    try:
        status = mount_at(Path(text).absolute(), Runtime(common.host_settings().runtime))
    except MountError:
        return None
    if "repositories" not in status and status.get("url") != ALL:
        return None
    sites, found = ConfiguredSites(common.options_said()), {}
    for name in [each["name"] for each in status.get("repositories", ()) if each["state"] != "unused"]:
        with suppress(ConfigError):  # its file is broken, or gone
            site = sites.site(name)
            found[name] = site.url, site.settings
    return found


def _locate(text: str) -> tuple[str, Settings]:
    from cvfs.cli.located import find_repository

    return common.locate(find_repository(text, ())[0])


def _examine_repository(address: str, settings: Settings) -> list["Finding"]:
    from cvfs.mount.doctor import examine_repository

    async def examine() -> "list[Finding]":
        return [finding async for finding in examine_repository(address, settings)]

    return common.run(examine)


def _print(finding: "Finding") -> None:
    line = f"{finding.state:<8} {finding.test}: {finding.says}"
    click.echo(common.printable(line.encode(errors="surrogateescape"), escape=True))
    if finding.state != "ok" and finding.remedy:
        click.echo(f"         -> {finding.remedy}")
