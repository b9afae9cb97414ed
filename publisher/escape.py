"""What stands in a repository, made fit for a terminal: names and messages may hold line feeds and escape sequences."""


def escape(text: str) -> str:
    """`text` in one line of printable characters; no two texts become the same.

    What is not printable becomes what it is in a Python string, and so does the backslash itself.
    """
    return "".join(map(_escape, text))


def _escape(character: str) -> str:
    if character.isprintable() and character != "\\":
        return character
    return character.encode("unicode_escape").decode("ascii")
