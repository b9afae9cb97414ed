"""The repository format: bytes <-> values, pure. docs/format.md is the specification; functions name its sections."""
