from pathlib import Path

import pytest

from cvfs.cache import index_files


@pytest.fixture(autouse=True)
def host_memory(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What stands for the memory of the host: nothing is left in it. Not in processes that a test starts."""
    memory = tmp_path_factory.mktemp("memory")
    monkeypatch.setattr(index_files, "MEMORY", memory)
    return memory
