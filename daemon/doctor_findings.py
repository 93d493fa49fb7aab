"""What the doctor says, and what all checks look at."""

import stat
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Literal, NamedTuple

from daemon.config import Places, Settings

Level = Literal["ok", "note", "warning", "error"]


class Finding(NamedTuple):
    """`fix` is the line that puts it right: a command or one thing to do; empty when there is nothing to put right."""

    area: str
    level: Level
    sentence: str
    fix: str = ""


class Answered(NamedTuple):
    """What the API said to the question for its models: the HTTP status, or None and why nothing came."""

    status: int | None
    models: tuple[str, ...] = ()
    trouble: str = ""


AskModels = Callable[[Settings], Answered]


class Patient(NamedTuple):
    """`variables` include the user's `.env`, `bare` do not. What could not be found out is None, and said elsewhere."""

    variables: Mapping[str, str]
    bare: Mapping[str, str]
    home: Path | None
    places: Places | None
    settings: Settings | None
    executable: Sequence[str]
    now: datetime
    ask_models: AskModels | None


Check = Callable[[Patient], tuple[Finding, ...]]


def mode_of(found: int) -> str:
    """As `chmod` takes it."""
    return f"{stat.S_IMODE(found):04o}"
