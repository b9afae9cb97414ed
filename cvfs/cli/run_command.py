"""cvfs run."""

import contextlib
import os
import signal
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NoReturn

import click

import cvfs
from cvfs.cli import common
from cvfs.config import Settings
from cvfs.config.settings import TABLE
from cvfs.errors import ConfigError, CvfsError
from cvfs.mount.place import find_place
from cvfs.rootless.namespaces import die_with_parent
from cvfs.rootless.root import BASE
from cvfs.rootless.session import Session, run_session

_CACHE = ("cache", "state", "logs", "runtime")


_LINE = "cvfs.run.line"


class _Command(click.Command):
    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """What is behind the first -- is no business of ours."""
        if "--" in args:
            place = args.index("--")
            ctx.meta[_LINE] = args[place + 1 :]
            args = args[:place]
        return super().parse_args(ctx, args)


@click.command(
    "run",
    cls=_Command,
    options_metavar="[OPTIONS]",
    epilog="Example: cvfs run http://software.example.org -- /cvfs/software.example.org/bin/python3",
)
@click.option("--all", "everything", is_flag=True, help="Every configured repository, below /cvfs.")
@common.mount_options
@click.argument("repositories", metavar="[URL[:DIR]]... -- COMMAND [ARGUMENT]...", nargs=-1)
@click.pass_context
def command(context: click.Context, everything: bool, repositories: tuple[str, ...]) -> None:
    """Run COMMAND with repositories mounted for it alone; no root, no setuid program, no configuration is needed.

    The repository at each URL (or of each configured name) is mounted on DIR, by default on /cvfs/NAME, in namespaces
    of the command's own, where everything in it belongs to you. The exit status is that of the command. When it ends
    nothing of it is left: no mount, no process.
    """
    line = context.meta.get(_LINE)
    if not line:
        raise click.UsageError("say what to run behind a --: cvfs run URL -- COMMAND")
    if everything == bool(repositories):
        raise click.UsageError("--all takes no repositories" if everything else "name a repository, or use --all")
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # who called may ignore it: then no child could be waited for
    settings, options = common.host_settings(), _options()
    mounts = {BASE: ["--all", os.fspath(BASE)]} if everything else _mounts_of(repositories)
    sys.exit(_run(line, {path: [*words, *options] for path, words in mounts.items()}, settings))


def _mounts_of(repositories: Sequence[str]) -> dict[Path, list[str]]:
    """What to have on which directory."""
    mounts: dict[Path, list[str]] = {}
    for text in repositories:
        url, directory = _parse(text)
        if directory in mounts:
            raise ConfigError(f"two repositories cannot both be on {directory}: name another directory, URL:DIR")
        mounts[directory] = [url, os.fspath(directory)]
    return mounts


def _options() -> list[str]:
    """The options that were typed, for the mounts; all belongs to the caller unless they say otherwise."""
    said = common.options_said()
    words = [] if any(name in said for name in ("own", "uid", "gid", "uid_map", "gid_map")) else ["--own"]
    for name, value in said.items():
        option = TABLE[name].option
        if isinstance(value, bool):
            words.append(option if value else option.replace("--", "--no-", 1))
        elif name not in _CACHE:
            words += [f"{option}={each}" for each in (value if isinstance(value, tuple) else (value,))]
    return words


def _parse(text: str) -> tuple[str, Path]:
    """URL[:DIR]: the repository, and the directory to mount it on."""
    url, colon, directory = text.rpartition(":")
    if colon and directory.startswith("/") and not directory.startswith("//"):
        return url, _place(Path(os.path.normpath(directory)))
    if colon and not os.path.isdir(text) and _is_known(url):
        raise ConfigError(f"{text}: the directory to mount on has to begin with a slash, not be {directory!r}")
    called = text.partition("@")[0]
    return text, BASE / (called if common.configuration().has(called) else _name_of(text))


def _is_known(url: str) -> bool:
    """Whether it is sure that this names a repository, without asking a server."""
    return any(os.path.isdir(each) or common.configuration().has(each) for each in (url, url.partition("@")[0]))


def _place(directory: Path) -> Path:
    """What is below `BASE` on the host is out of sight by then: no link there counts."""
    return directory if BASE in (directory, *directory.parents) else find_place(directory)


def _name_of(text: str) -> str:
    """What the repository is called. It is asked for by a process of its own, with the threads that this takes: only a
    process without threads can make a user namespace. If that fails this exits, and why has been said."""
    reader, writer = os.pipe()
    child = os.fork()
    if not child:
        _tell_name(text, writer)
    os.close(writer)
    with os.fdopen(reader, "rb") as answer:
        name = answer.read().decode()
    _, status = os.waitpid(child, 0)
    if status:
        sys.exit(1)
    return name


def _tell_name(text: str, writer: int) -> NoReturn:
    status = 1
    try:
        die_with_parent()
        common.setup_quiet_logging()
        location, settings = common.locate(text)
        os.write(writer, common.run(lambda: _open(location, settings)).encode())
        status = 0
    except CvfsError as error:
        click.echo(f"cvfs: error: {error}", err=True)
    finally:
        os._exit(status)


async def _open(url: str, settings: Settings) -> str:
    from cvfs.mount.client import open_repository

    async with open_repository(url, settings, settings.which) as client:
        return client.repository.manifest.repository


def _run(line: Sequence[str], mounts: dict[Path, list[str]], settings: Settings) -> int:
    if Path("/") in mounts:
        raise ConfigError("a repository cannot be mounted on /: name another directory")
    # -P: the caller's directory may have a Python file by the name of a module.
    program = [sys.executable, "-P", "-m", "cvfs", "mount"]
    root = os.fspath(Path(cvfs.__file__).parents[1])
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH")]))}
    environment |= {TABLE[name].variable: os.fspath(getattr(settings, name)) for name in _CACHE}
    environment.setdefault("HOME", os.path.expanduser("~"))
    lines = {path: [*program, *words] for path, words in mounts.items()}
    with _made(settings.runtime):
        return run_session(Session(line, lines, environment, settings.runtime))


@contextlib.contextmanager
def _made(directory: Path) -> Iterator[None]:
    """The directory is there meanwhile, and as it was afterwards."""
    try:
        directory.mkdir(mode=0o700, parents=True)
    except FileExistsError:
        yield
        return
    try:
        yield
    finally:
        with contextlib.suppress(OSError):  # somebody else uses it by now
            directory.rmdir()
