"""What `cvfs doctor` finds."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True)
class Finding:
    """What came of one test. `says` is what was found, `remedy` what to do about it; "warning" keeps nothing back."""

    test: str
    state: Literal["ok", "warning", "failed"]
    says: str
    remedy: str = ""


def failed(test: str, says: str, remedy: str) -> Finding:
    return Finding(test, "failed", says, remedy)
