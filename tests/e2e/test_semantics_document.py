"""docs/semantics.md names the tests that hold its statements: they must exist."""

import re

from tests.e2e.host import ROOT


def test_every_test_that_the_document_names_exists() -> None:
    named = set(re.findall(r"`(test_\w+)`", (ROOT / "docs/semantics.md").read_text()))
    sources = "".join(path.read_text() for path in (ROOT / "tests").rglob("test_*.py"))
    assert named - set(re.findall(r"(?m)^def (test_\w+)", sources)) == set()
    assert len(named) > 60
