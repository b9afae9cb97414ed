"""Assembly: a repository put together from its parts, and the process that serves a mount of it."""
