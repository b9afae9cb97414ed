"""Every benchmark runs, with trees so small that its figures mean nothing: so that none rots."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.__main__ import QUESTIONS
from benchmarks.frame import Report, Target, interleave
from benchmarks.readers import _tar, shares

ROOT = Path(__file__).resolve().parents[1]

WITH_BOTH_ENGINES = ("mount", "walk")
"""The others do the same with each; the smoke of all with both is a tenth of the time of all tests."""

needs_fuse = pytest.mark.skipif(
    not os.access("/dev/fuse", os.W_OK) or not (os.geteuid() == 0 or shutil.which("fusermount3")), reason="no FUSE"
)


@needs_fuse
@pytest.mark.parametrize("question", QUESTIONS)
def test_smoke(question: str, tmp_path: Path) -> None:
    engine = () if question in WITH_BOTH_ENGINES else ("--engine", "channel")
    argv = [sys.executable, "-m", "benchmarks", "--smoke", "--json", "--work", str(tmp_path), *engine, question]
    done = subprocess.run(argv, cwd=ROOT, capture_output=True, text=True, timeout=110, check=False)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert result["smoke"]
    rows = result["reports"][question]["rows"]
    assert rows
    assert all(row["median"] >= 0 and row["samples"] for row in rows)
    assert not [path for path in tmp_path.iterdir() if path.name.startswith("run-")]


def test_an_unknown_question_is_refused_by_name() -> None:
    argv = [sys.executable, "-m", "benchmarks", "nonsense"]
    done = subprocess.run(argv, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "nonsense" in done.stderr


def test_samples_of_all_subjects_are_interleaved() -> None:
    order = []

    def subject(name: str) -> float:
        order.append(name)
        return float(len(order))

    samples = interleave(2, {"a": lambda: subject("a"), "b": lambda: subject("b")})
    assert order == ["a", "b", "a", "b"]
    assert samples == {"a": [1.0, 3.0], "b": [2.0, 4.0]}


def test_targets_and_ratios_are_of_medians() -> None:
    report = Report("?", "peer")
    report.add("task", "ours", "s", [1.0, 9.0, 2.0], Target(2.0))
    report.add("task", "peer", "s", [4.0])
    report.add("rate", "ours", "MB/s", 10.0, Target(11.0, is_upper=False))
    report.add("task", "another of ours", "s", 1.0, Target(0.2, is_ratio=True))
    report.add("rate", "another of ours", "MB/s", 1.0, Target(2.0, is_ratio=True))
    ours, peer, rate, another, alone = report.rows
    assert (ours.median, report.verdict(ours), report.ratio(ours)) == (2.0, "met", 0.5)
    assert (report.verdict(peer), report.ratio(peer)) == ("", None)
    assert (report.verdict(rate), report.ratio(rate)) == ("missed", None)
    assert (report.verdict(another), report.ratio(another)) == ("missed", 0.25)
    assert (report.verdict(alone), report.ratio(alone)) == ("", None)
    assert report.by_task() == {"task": [ours, peer, another], "rate": [rate, alone]}


def test_shares_hold_every_file_once(tmp_path: Path) -> None:
    for number in range(20):
        (tmp_path / f"{number:02}").write_bytes(bytes(number * 10_000))
    parts = shares(tmp_path, 4)
    assert sorted(name for part in parts for name in part) == [f"{number:02}" for number in range(20)]
    work = [sum((tmp_path / name).stat().st_size + 32_768 for name in part) for part in parts]
    assert max(work) < 1.5 * min(work)


@pytest.mark.timeout(20)
def test_readers_begin_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """However many names one has: the next need not wait until it has taken them."""
    program, gate = tmp_path / "bin/tar", tmp_path / "gate"
    program.parent.mkdir()
    os.mkfifo(gate)
    program.write_text(f'#!/bin/sh\ncat {gate} "$7" > {tmp_path}/got\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(program.parent), prepend=os.pathsep)
    names = [f"{number:0200}" for number in range(5000)]
    reader = _tar(tmp_path, names)
    gate.write_bytes(b"")
    assert reader.wait(10) == 0
    assert (tmp_path / "got").read_text().split("\0") == names
