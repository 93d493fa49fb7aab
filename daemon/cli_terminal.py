"""What people see: tables, a bar while they wait, sentences. And what programs read in their place: plain lines.

Rule: a table, a colour or a bar is for a terminal only; NO_COLOR and TERM=dumb leave no escape at all, and FORCE_COLOR
never gets into a pipe. Text from outside is harmless before it is shown, and never markup. rich is imported for
terminals only.
"""

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, NamedTuple, TextIO

from daemon import config
from eventlog.audit import harmless

if TYPE_CHECKING:
    from rich.console import Console

    from daemon.results import JobReport

DUMB = ("dumb", "unknown")
REFRESHES_PER_SECOND = 8  # the bar moves smoothly, and nobody's processor notices
BAR_COLUMNS = 24
WIDE = 100  # columns from which on a table tells more
ELASTIC_COLUMNS_MIN = 10
GAP = 2  # between columns, as rich has it

Watch = Callable[[Sequence["JobReport"]], None]


class Column(NamedTuple):
    """`only_wide`: left out on a narrow terminal. `elastic`: takes what room is left, and is cut where it ends."""

    title: str
    right: bool = False
    elastic: bool = False
    only_wide: bool = False
    style: str = ""


def say(sentence: str) -> None:
    """To the person, whatever stdout is used for. Lines stay lines, and all but the first are
    indented, so that none that came from outside passes for a sentence of ours.
    """
    first, *more = (harmless(line) for line in sentence.split("\n"))
    print("\n  ".join([f"imaged: {first}", *more]), file=sys.stderr)  # noqa: T201


def out(text: str) -> None:
    """Lines of the answer. What would act on a terminal is shown as its number; a program gets the same."""
    print("\n".join(harmless(line) for line in text.split("\n")))  # noqa: T201


def path_out(path: str) -> None:
    """A path on a line of its own; for a program it is the very path, because it will open it."""
    print(harmless(path) if sys.stdout.isatty() else path, flush=True)  # noqa: T201


def row_out(cells: Sequence[str]) -> None:
    """A line for programs, with tabs between its cells and nowhere else."""
    print("\t".join(harmless(cell) for cell in cells))  # noqa: T201


def has_escapes(stream: TextIO) -> bool:
    """Whether the stream leads to a terminal that takes escape sequences, and its owner wants them."""
    environ = config.process_environment()
    return stream.isatty() and environ.get("TERM", "dumb") not in DUMB and not environ.get("NO_COLOR")


def table(columns: Sequence[Column], rows: Sequence[Sequence[str]], last: Sequence[str] | None = None) -> None:
    """On a terminal aligned, with titles, without empty columns, and with `last` below as the sum. Elsewhere one line a
    row, whole, between tabs.
    """
    if not sys.stdout.isatty():
        for row in rows:
            row_out(row)
        return
    if not rows and last is None:
        return
    from rich.table import Table
    from rich.text import Text

    console = _console(sys.stdout)
    below = [*rows, *([last] if last is not None else [])]
    shown = [
        number
        for number, column in enumerate(columns)
        if (console.width >= WIDE or not column.only_wide) and any(row[number] for row in below)
    ]
    widths = _widths(columns, shown, below, console.width)
    console.width = max(console.width, sum(widths) + GAP * len(widths))  # rather a second line than half of an id
    drawn = Table(box=None, pad_edge=False, show_footer=last is not None, header_style="bold", footer_style="bold")
    for number, width in zip(shown, widths, strict=True):
        drawn.add_column(
            Text(columns[number].title),
            Text(harmless(last[number])) if last is not None else "",
            justify="right" if columns[number].right else "left",
            style=columns[number].style,
            no_wrap=True,
            overflow="ellipsis",
            width=width,
        )
    for row in rows:
        drawn.add_row(*(Text(harmless(row[number])) for number in shown))
    console.print(drawn, crop=False)


def _widths(columns: Sequence[Column], shown: Sequence[int], rows: Sequence[Sequence[str]], room: int) -> list[int]:
    """Of the columns that are shown: as wide as what is in them, only the elastic one no wider than there is room for."""
    from rich.cells import cell_len

    needed = [max(cell_len(harmless(cell)) for cell in (columns[n].title, *(row[n] for row in rows))) for n in shown]
    left = room - sum(width for n, width in zip(shown, needed, strict=True) if not columns[n].elastic) - GAP * (len(shown) - 1)
    return [
        min(width, max(left, ELASTIC_COLUMNS_MIN)) if columns[n].elastic else width
        for n, width in zip(shown, needed, strict=True)
    ]


@contextmanager
def waiting() -> Iterator[Watch]:
    """What is told while jobs are waited for: a bar on a terminal, which leaves nothing behind; elsewhere a line when
    something has changed.
    """
    if not has_escapes(sys.stderr):
        yield _Lines().watch
        return
    from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    bar = Progress(
        SpinnerColumn(),
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=BAR_COLUMNS),
        TimeElapsedColumn(),
        console=_console(sys.stderr),
        transient=True,
        refresh_per_second=REFRESHES_PER_SECOND,
        redirect_stdout=False,
        redirect_stderr=False,
    )
    with bar:
        task = bar.add_task("asking the daemon", total=None)

        def watch(jobs: Sequence["JobReport"]) -> None:
            over = sum(_is_over(job) for job in jobs)
            total = len(jobs) if len(jobs) > 1 else None  # of one job nobody knows how far it is
            bar.update(task, description=harmless(_standing(jobs, over)), total=total, completed=over)

        yield watch


class _Lines:
    """How one job goes on, or which of several are over. Each thing is said once."""

    def __init__(self) -> None:
        self._told: set[str] = set()

    def watch(self, jobs: Sequence["JobReport"]) -> None:
        for job in jobs:
            if len(jobs) == 1 and not _is_over(job):
                self._say_once(f"job {job.job_id}: {_standing(jobs, 0)}.")
            elif len(jobs) > 1 and _is_over(job):
                self._say_once(f"job {job.job_id} is {job.state}.")

    def _say_once(self, sentence: str) -> None:
        if sentence not in self._told:
            self._told.add(sentence)
            say(sentence)


def _standing(jobs: Sequence["JobReport"], over: int) -> str:
    if len(jobs) > 1:
        return f"{over}/{len(jobs)} over"
    (job,) = jobs
    if job.state == "pending":
        return "waiting for a free place"
    if job.retry_at is not None:
        return f"{job.error_code}, trying again soon"
    pictures = "1 picture" if job.requested.count == 1 else f"{job.requested.count} pictures"
    return f"drawing {pictures} with {job.model}"


def _is_over(job: "JobReport") -> bool:
    return job.state not in ("pending", "running")


def _console(stream: TextIO) -> "Console":
    from rich.console import Console

    plain = not has_escapes(stream)
    return Console(
        file=stream,
        force_terminal=not plain,
        color_system=None if plain else "auto",
        highlight=False,
        markup=False,
        emoji=False,
        legacy_windows=False,
    )
