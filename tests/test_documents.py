"""What the documents name is there: commands with their options, paths, tests."""

import importlib
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

ROOT = Path(__file__).resolve().parents[1]
DOCUMENTS = ["README.md", "docs/operations.md", "docs/threats.md"]
PROGRAMS = {"cvfs": "cvfs.cli.group", "cvfs-publisher": "publisher.cli.group"}
_LINE = re.compile(r"^ {4}((?:cvfs|cvfs-publisher) [^#\n]*)", re.MULTILINE)


def commands() -> Iterator[tuple[str, str]]:
    for document in DOCUMENTS:
        for line in _LINE.findall((ROOT / document).read_text()):
            yield document, re.split("&&| -- ", line)[0].strip()


@pytest.mark.parametrize(("document", "line"), sorted(set(commands())))
def test_the_command_exists(document: str, line: str) -> None:
    program, *words = shlex.split(line)
    command: click.Command = importlib.import_module(PROGRAMS[program]).cli
    context = click.Context(command)
    while isinstance(command, click.Group):
        found = command.get_command(context, words.pop(0))
        assert found is not None, f"{document}: no such command: {line}"
        command = found
    options = {name for parameter in command.params for name in parameter.opts + parameter.secondary_opts}
    unknown = [word for word in words if word.startswith("-") and word.partition("=")[0] not in options]
    assert unknown == [], f"{document}: {line}"


def test_there_are_commands() -> None:
    assert len(list(commands())) > 20


def test_paths_of_the_code_exist() -> None:
    missing = [
        f"{document.relative_to(ROOT)}: {path}"
        for document in [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("benchmarks/*.md")]
        for path in re.findall(
            r"`((?:cvfs|publisher|tests|benchmarks|contrib|scripts)/[\w./-]*)`", document.read_text()
        )
        if not (ROOT / path).exists() and document.name != "CHANGELOG.md" and path != "benchmarks/results/"
    ]
    assert missing == []


def test_each_folder_of_the_code_is_in_the_map() -> None:
    text = (ROOT / "docs/architecture.md").read_text()
    packages = [path.parent for top in ("cvfs", "publisher") for path in ROOT.glob(f"{top}/*/__init__.py")]
    folders = {str(path.relative_to(ROOT)) for path in packages}
    assert {name for name in folders if f"`{name}`" not in text} == set()


def test_tests_that_documents_name_exist() -> None:
    tests = {
        name for path in (ROOT / "tests").rglob("*.py") for name in re.findall(r"def (test_\w+)", path.read_text())
    }
    named = {name for path in ROOT.glob("docs/**/*.md") for name in re.findall(r"`(test_\w+)`", path.read_text())}
    assert named - tests == set()
