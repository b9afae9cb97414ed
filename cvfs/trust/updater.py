"""python-tuf's Updater without its own way to the network, which nothing here goes: `chain` gives it another.

That way is urllib3, HTTP and TLS with it: 40 ms of the 90 that python-tuf takes to import. So something else stands
in its place for as long as the Updater is imported.
"""

import sys
from types import ModuleType

_NETWORK = "tuf.ngclient.urllib3_fetcher"


class _Nothing:
    """In place of a fetcher that is never made."""


sys.modules[_NETWORK] = ModuleType(_NETWORK)
sys.modules[_NETWORK].__dict__["Urllib3Fetcher"] = _Nothing
try:
    from tuf.ngclient import FetcherInterface, Updater, UpdaterConfig
except ImportError:  # This python-tuf wants more of it.
    del sys.modules[_NETWORK]
    from tuf.ngclient import FetcherInterface, Updater, UpdaterConfig
else:
    del sys.modules[_NETWORK]

__all__ = ["FetcherInterface", "Updater", "UpdaterConfig"]
