"""The key of servers that ask for one. It is in the environment alone, and nothing says or writes it."""

import os

VARIABLE = "GSPO_SERVER_KEY"


def server_key() -> str:
    """Empty: none. Raises ValueError for what no header can carry."""
    key = os.environ.get(VARIABLE, "")
    if not (key.isascii() and key.isprintable() and " " not in key):
        raise ValueError(f"{VARIABLE} holds a space, a line end or another character that no header can carry")
    return key


def hold_key(key: str) -> None:
    """For a process that others began, with an environment of its own."""
    if key:
        os.environ[VARIABLE] = key
