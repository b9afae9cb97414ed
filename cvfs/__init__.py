"""cvfs: software distribution as a file system."""

__version__ = "0.1.0"
