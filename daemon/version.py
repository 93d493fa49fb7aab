"""The version, where even the bridge can read it."""

VERSION = "0.1.0"


def is_newer(software: str) -> bool:
    """Whether this is a later version than ours. What is none is not."""
    return _numbers(software) > _numbers(VERSION)


def _numbers(version: str) -> tuple[int, ...]:
    parts = version.split(".")
    return tuple(map(int, parts)) if all(part.isascii() and part.isdigit() and len(part) < 10 for part in parts) else ()
