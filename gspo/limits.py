"""Checks that settings share."""

from typing import Any


def at_least(settings: Any, table: str, minimum: int, *names: str) -> None:
    """Raises ValueError for a field under its minimum, with its name as it is written in a recipe."""
    for name in names:
        value = getattr(settings, name)
        if value < minimum:
            raise ValueError(f"{table}{name} is {value}; it must be at least {minimum}")
