"""What this host remembers of a store between one publish and the next. All of it can be lost."""
