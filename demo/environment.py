"""The tree that the demo publishes: an interpreter, its standard library, and packages installed beside it."""

import json
import os
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

PACKAGES = ("numpy", "scipy", "pandas", "sympy")
"""About 11,000 files and 250 MB, compiled modules included."""

VERSION = f"python{sys.version_info.major}.{sys.version_info.minor}"

_LEFT_OUT = ("site-packages", "dist-packages", "config-*")
_SMALL_LEFT_OUT = ("test", "tests", "idlelib", "lib2to3", "ensurepip", "tkinter", "turtledemo", "unittest", "distutils")


class DemoError(Exception):
    """What a user is told in one line."""


@dataclass(frozen=True, slots=True)
class Environment:
    """A Python that needs nothing but what is in `top`, wherever that is seen."""

    top: Path
    modules: tuple[str, ...]

    def command(self, seen_at: Path) -> list[str]:
        """Run the demo's program with this environment, which is seen at `seen_at`."""
        program = [str(seen_at / "program.py"), str(seen_at), *self.modules]
        return [str(seen_at / "bin" / VERSION), "-s", *program]

    def variables(self, seen_at: Path) -> dict[str, str]:
        """What its interpreter has to be told."""
        return {"PYTHONHOME": str(seen_at), "PYTHONPATH": str(seen_at / "lib" / VERSION / "site-packages")}


def provide(kept: Path, *, small: bool, say: Callable[[str], None]) -> Environment:
    """The environment below `kept`: the one of the last run, or made now. Raises DemoError.

    `small` is for tests: of the standard library what is needed, and no packages.
    """
    packages = () if small else PACKAGES
    top = kept / ("small-environment" if small else "environment")
    stamp = kept / f"{top.name}.json"
    wanted = json.dumps({"python": sys.version, "packages": packages})
    if not (stamp.is_file() and stamp.read_text() == wanted and top.is_dir()):
        stamp.unlink(missing_ok=True)
        shutil.rmtree(top, ignore_errors=True)
        _make(top, kept / "wheels", packages, small=small, say=say)
        stamp.write_text(wanted)
    shutil.copy(Path(__file__).with_name("program.py"), top)
    return Environment(top, packages or ("statistics", "json", "sqlite3", "email.message", "asyncio"))


def _make(top: Path, wheels: Path, packages: tuple[str, ...], *, small: bool, say: Callable[[str], None]) -> None:
    library = top / "lib" / VERSION
    say(f"copying the standard library of {VERSION}")
    left_out = _LEFT_OUT + (_SMALL_LEFT_OUT if small else ())
    shutil.copytree(sysconfig.get_path("stdlib"), library, symlinks=True, ignore=shutil.ignore_patterns(*left_out))
    (top / "bin").mkdir()
    shutil.copy(os.path.realpath(sys.executable), top / "bin" / VERSION)
    if packages:
        _install(library / "site-packages", wheels, packages, say)
    say("compiling what is not compiled yet")
    compiling = ["-m", "compileall", "-qq", "-j", "0", str(library)]
    subprocess.run([sys.executable, *compiling], check=False, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def _install(target: Path, wheels: Path, packages: tuple[str, ...], say: Callable[[str], None]) -> None:
    """Install from the wheels that are kept; where one is missing, download it first."""
    install = ["install", "--no-index", "--find-links", str(wheels), "--no-compile", "--target", str(target), *packages]
    wheels.mkdir(parents=True, exist_ok=True)
    say(f"installing {', '.join(packages)}")
    if _pip(*install) is None:
        return
    say(f"downloading {', '.join(packages)} (about 70 MB, kept in {wheels})")
    problem = _pip("download", "--only-binary", ":all:", "--dest", str(wheels), *packages)
    if problem is not None:
        raise DemoError(f"pip cannot download {', '.join(packages)}: {problem}; is the network there?")
    say(f"installing {', '.join(packages)}")
    problem = _pip(*install)
    if problem is not None:
        raise DemoError(f"pip cannot install from {wheels}: {problem}")


def _pip(*arguments: str) -> str | None:
    """None, or the last line of what went wrong."""
    argv = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check", *arguments]
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    if done.returncode == 0:
        return None
    lines = [line for line in done.stderr.splitlines() if line.strip()]
    return lines[-1].strip() if lines else f"exit status {done.returncode}"
