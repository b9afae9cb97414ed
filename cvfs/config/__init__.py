"""Settings: what there is to set, and where the values that hold come from.

`cvfs.config.settings` is the one table of all settings; `cvfs.config.layers` puts files, environment and options upon
each other; the rest is how values are written.
"""

from cvfs.config.layers import Configuration, read_configuration
from cvfs.config.settings import Settings

__all__ = ["Configuration", "Settings", "read_configuration"]
