"""Private keys, and the metadata that they sign."""
