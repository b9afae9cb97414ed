"""Passphrases of keys: from the environment, or asked for on the terminal. Never echoed, never logged."""

import os
import sys

import click


def ask_passphrase(what: str) -> str:
    """The passphrase of `what`. Raises ConfigError: there is none, nor a terminal to ask at."""
    from publisher.signing.keys import PASSPHRASE, ask_environment

    if os.environ.get(PASSPHRASE) or not sys.stdin.isatty():
        return ask_environment(what)
    text: str = click.prompt(f"Passphrase of {what}", hide_input=True, err=True)
    return text


def new_passphrase(is_wanted: bool) -> str | None:
    """A passphrase for keys that are about to be made, None if none is wanted. Raises ConfigError as above."""
    from publisher.signing.keys import PASSPHRASE, ask_environment

    if not is_wanted:
        return None
    if os.environ.get(PASSPHRASE) or not sys.stdin.isatty():
        return ask_environment("the new key")
    text: str = click.prompt("Passphrase for the new key", hide_input=True, confirmation_prompt=True, err=True)
    return text
