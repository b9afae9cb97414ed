"""Rules that hold for the tree itself, and that no linter knows."""

import ast
import configparser
import re
import subprocess
import sys
from functools import cache
from importlib import import_module, metadata
from pathlib import Path

import pytest

import cvfs

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("cvfs", "publisher")
MAX_FUNCTION_LINES = 70


@cache
def project_files() -> tuple[Path, ...]:
    """What is committed or could be; safe.directory, because the checkout may belong to another user."""
    listing = subprocess.run(
        ["git", "-c", "safe.directory=*", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    paths = (ROOT / name for name in listing.split("\0") if name)
    return tuple(path for path in paths if path.is_file() and not path.is_symlink())


def sources() -> list[Path]:
    return [path for path in project_files() if path.suffix == ".py" and path.relative_to(ROOT).parts[0] in PACKAGES]


def setup_cfg() -> configparser.ConfigParser:
    parser = configparser.ConfigParser()
    parser.read(ROOT / "setup.cfg")
    return parser


def words(option: str) -> list[str]:
    """The lines of a list in setup.cfg, each without its version bounds and extras."""
    return [re.split(r"[\s\[<>=!~]", line)[0] for line in option.split("\n") if line and not line.startswith("#")]


def imported_names(path: Path) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(path.read_bytes())):
        if isinstance(node, ast.Import):
            names |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module.partition(".")[0])
    return names


def test_no_file_names_a_path_of_the_machine_it_was_written_on() -> None:
    private = re.compile(rb"(?<![\w./*}\]-])/(?:home|Users|work|farm)/\w[^\s\"']*")
    found = {
        str(path.relative_to(ROOT)): hits for path in project_files() if (hits := private.findall(path.read_bytes()))
    }
    assert not found


def test_version_stands_in_one_place() -> None:
    assert setup_cfg()["metadata"]["version"] == "attr: cvfs.__version__"
    literal = re.compile(rb"version\w* *[:=] *[\"']?" + re.escape(cvfs.__version__.encode()) + rb"\b", re.IGNORECASE)
    named_in = [path.relative_to(ROOT) for path in project_files() if literal.search(path.read_bytes())]
    assert named_in == [Path("cvfs/__init__.py")]


def entry_points() -> list[str]:
    return [line for line in setup_cfg()["options.entry_points"]["console_scripts"].split("\n") if line]


@pytest.mark.parametrize("line", entry_points())
def test_command_exists(line: str) -> None:
    module, _, function = line.partition("=")[2].strip().partition(":")
    assert callable(getattr(import_module(module), function))


def test_every_directory_of_sources_is_a_package() -> None:
    directories = {path.parent for path in sources()}
    assert not [directory for directory in directories if not (directory / "__init__.py").is_file()]
    assert all((ROOT / package / "py.typed").is_file() for package in PACKAGES)


def test_what_is_imported_is_declared() -> None:
    """An import must be of the standard library, of ours, or of a distribution that setup.cfg names itself."""
    config = setup_cfg()
    declared = set(words(config["options"]["install_requires"]) + words(config["options.extras_require"]["pyfuse3"]))
    known = {
        module
        for module, distributions in metadata.packages_distributions().items()
        if {name.lower().replace("_", "-") for name in distributions} & declared
    }
    allowed = known | sys.stdlib_module_names | set(PACKAGES)
    foreign = {path.name: names for path in sources() if (names := imported_names(path) - allowed)}
    assert not foreign


def test_functions_are_short() -> None:
    long = [
        f"{path.relative_to(ROOT)}:{node.lineno} {node.name}"
        for path in sources()
        for node in ast.walk(ast.parse(path.read_bytes()))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and (node.end_lineno or node.lineno) - node.lineno >= MAX_FUNCTION_LINES
    ]
    assert not long


def documents() -> list[Path]:
    return [path for path in project_files() if path.suffix == ".md"]


def test_links_between_documents_lead_somewhere() -> None:
    link = re.compile(r"\]\((?!\w+:|#)([^)#\s]+)")
    broken = [
        f"{document.relative_to(ROOT)}: {target}"
        for document in documents()
        for target in link.findall(document.read_text())
        if not (document.parent / target).exists()
    ]
    assert not broken


def test_make_targets_in_documents_exist() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    named = {
        (document.name, target)
        for document in documents()
        for target in re.findall(r"(?:`|^ *(?:\$ )?)make ([a-z-]+)", document.read_text(), re.MULTILINE)
    }
    assert not [f"{name}: make {target}" for name, target in named if target not in targets]


def test_test_that_says_so_may_last_longer_than_others(tmp_path: Path) -> None:
    """Neither the limit of all nor the guard behind it, which ends the process, is for the hour of a soak."""
    module = tmp_path / "test_long.py"
    module.write_text(
        "import pytest, threading\n"
        "@pytest.mark.timeout(60)\n"
        "def test_long(): threading.Event().wait(3)\n"
        "def test_hangs(): threading.Event().wait(60)\n"
    )
    line = [sys.executable, "-m", "pytest", "-c", "setup.cfg", "-p", "tests.conftest", "-p", "no:cacheprovider", module]
    line += ["--rootdir", tmp_path, "-o", "timeout=0", "-o", "faulthandler_timeout=2", "-v"]
    run = subprocess.run(line, cwd=ROOT, capture_output=True, text=True, check=False, timeout=60)
    assert "::test_long PASSED" in run.stdout
    assert "in test_hangs" in run.stderr
    assert run.returncode == 1
