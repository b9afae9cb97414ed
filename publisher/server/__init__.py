"""The embedded HTTP server: `cvfs-publisher serve`."""
