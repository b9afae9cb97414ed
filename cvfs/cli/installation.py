"""What `cvfs setup` makes: files that stand outside of the Python environment, and lead into it."""

import shlex
import site
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path

import click
from click.shell_completion import ShellComplete, get_completion_class

import cvfs
from cvfs.cli.group import cli
from cvfs.config.notation import write_atomically
from cvfs.errors import ConfigError

_MARK = "Made by `cvfs setup`"
"""In every file, so that no other is overwritten or removed."""

_HELPERS = ("sbin/mount.cvfs", "sbin/mount.fuse.cvfs")
"""Below the prefix. mount(8) looks nowhere else. The second is for mounts that are there: it takes their type from the
kernel, and would run the helper of FUSE, which knows nothing of cvfs."""

_UNITS = "etc/systemd/system"
_MANUAL = "usr/local/share/man/man8/cvfs.8"
_COMPLETION = {
    "bash": "usr/share/bash-completion/completions/cvfs",
    "zsh": "usr/share/zsh/vendor-completions/_cvfs",
    "fish": "usr/share/fish/vendor_completions.d/cvfs.fish",
}
_MODULES = {"cvfs": "cvfs", "cvfs-publisher": "publisher"}
"""The programs that units name, and what runs them by this interpreter."""


def install(prefix: Path) -> list[Path]:
    """Write all files below `prefix`; which. Raises OSError, and ConfigError where a file of somebody else is."""
    files = {prefix / name: text for name, text in _files()}
    for path in files:
        if path.exists() and not _is_ours(path):
            raise ConfigError(f"{path} is there, and is not from `cvfs setup`: move it away first")
    for path, text in files.items():
        write_atomically(path, text.encode())
    for name in _HELPERS:
        (prefix / name).chmod(0o755)
    return list(files)


def remove(prefix: Path) -> list[Path]:
    """Remove those of the files that are there and ours; which. Raises OSError."""
    ours = [path for path in (prefix / name for name, _ in _files()) if path.exists() and _is_ours(path)]
    for path in ours:
        path.unlink()
    return ours


def _is_ours(path: Path) -> bool:
    return _MARK in path.read_text("utf-8", "replace")


def _files() -> Iterator[tuple[str, str]]:
    """Names below the prefix, and what the files say."""
    helper = _python("cvfs.cli.mount_helper")
    for name in _HELPERS:
        kind = name.partition(".")[2]
        yield name, f'#!/bin/sh\n# {_MARK}: what mount(8) runs for the type {kind}.\nexec {helper} "$@"\n'
    for unit in sorted(_contributed("systemd").iterdir()):
        yield f"{_UNITS}/{unit.name}", f"# {_MARK}.\n{_with_absolute_commands(unit.read_text('utf-8'))}"
    yield _MANUAL, "".join(_manual())
    for shell, place in _COMPLETION.items():
        yield place, f"{_completion(shell)}\n# {_MARK}.\n"


def _python(module: str) -> str:
    """The command that runs a module with this interpreter, from wherever its code is; in words for a shell.

    -P: whoever runs it, root for one, may be in a directory where others have put a Python file by a module's name.
    """
    root = str(Path(cvfs.__file__).parents[1])
    words = [sys.executable, "-P", "-m", module]
    if root not in site.getsitepackages():
        words = ["/usr/bin/env", f"PYTHONPATH={root}", *words]
    return shlex.join(words)


def _contributed(what: str) -> Path:
    """The directory of the files that come with the code: in a checkout, or where pip has put them."""
    for top in (Path(cvfs.__file__).parents[1] / "contrib", Path(sysconfig.get_path("data")) / "share/cvfs"):
        if (top / what).is_dir():
            return top / what
    raise ConfigError(f"this installation of cvfs lacks its share/cvfs/{what}: install it anew")


def _with_absolute_commands(unit: str) -> str:
    """A unit that needs no PATH: systemd's own seldom has a virtual environment."""
    for program, module in _MODULES.items():
        unit = unit.replace(f"/usr/bin/env {program} ", _python(module).replace("%", "%%") + " ")
    return unit


def _completion(shell: str) -> str:
    """The script by which a shell asks `cvfs` how a line could go on."""
    kind = get_completion_class(shell)
    assert kind is not None
    # Not its own `source`: bash's runs a bash to see how old it is.
    return ShellComplete.source(kind(cli, {}, "cvfs", "_CVFS_COMPLETE"))


def _manual() -> Iterator[str]:
    """A manual page made of what --help says."""
    yield f'.\\" {_MARK}.\n.TH CVFS 8 "" "cvfs {cvfs.__version__}"\n'
    yield ".SH NAME\ncvfs \\- software from signed, content-addressed repositories\n"
    top = click.Context(cli, info_name="cvfs", max_content_width=78)
    yield _section("cvfs", top)
    for name in cli.list_commands(top):
        command = cli.get_command(top, name)
        assert command is not None
        yield _section(f"cvfs {name}", click.Context(command, top, name))


def _section(title: str, context: click.Context) -> str:
    text = context.get_help().replace("\\", "\\e")
    lines = (f"\\&{line}" if line.startswith((".", "'")) else line for line in text.splitlines())
    return f".SH {title.upper()}\n.nf\n" + "\n".join(lines) + "\n.fi\n"
