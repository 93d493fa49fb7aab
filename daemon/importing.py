"""Taking over the history of the program that imaged replaces.

Rule: one generation, one commit, under the id it always had, so that an import may be cut off anywhere and asked for
again: what is there is passed over. What the old program believed of costs is kept as its claim and counted nowhere.
"""

import logging
import shlex
from collections.abc import Sequence
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import NamedTuple

import trio

from daemon import decisions
from daemon.arguments import ImportHistory
from daemon.config import Settings
from daemon.errors import Refused
from daemon.house import House
from daemon.results import Answer, HistoryImport
from daemon.session import Caller
from eventlog.errors import IndexUnavailable
from eventlog.events import HistoryImported
from eventlog.history import History
from eventlog.values import Cost, Words
from tools import old_history
from tools.errors import FileFailed
from tools.old_history import OldGeneration, Unusable

BATCH_MAX = 200  # generations that share one sync; a kill in the middle repeats the looking at this many files
UNUSABLE_SHOWN_MAX = 20
OFFER_SECONDS_MAX = 1.0  # a disk that hangs must not make the history hang
OFFERS_KEPT_MAX = 64  # one for each output directory that any client has named

logger = logging.getLogger(__name__)


class _Reading(NamedTuple):
    """`new` are not in this history, each once. `failure` is what kept the rest from being read."""

    new: tuple[OldGeneration, ...]
    already_there: int
    unusable: tuple[Unusable, ...]
    failure: FileFailed | None


async def import_history(house: House, caller: Caller, asked: ImportHistory) -> Answer:
    """Takes over every generation that is not here yet. What was imported stays if it cannot go on.

    Raises:
        Refused: no such database, or it cannot be read to its end; or the disk is full.
    """
    path = await trio.to_thread.run_sync(_chosen, asked.path, caller.session.settings.old_history)
    async with house.desk.importing:
        reading = await trio.to_thread.run_sync(_read, house.history, path)
        # A stale index does not know what was imported since; the board has kept it.
        new = [one for one in reading.new if house.ledger.board.get(one.uuid) is None]
        try:
            missing = await _take_over(house, caller, new)
        finally:
            house.desk.imports += 1
    if reading.failure is not None:
        told = f" {len(new):,} generations were imported before that." if new else ""
        raise Refused(f"{reading.failure}{told}", code=reading.failure.code, argument="path")
    already_there = reading.already_there + len(reading.new) - len(new)
    return Answer(_result(path, len(new), already_there, missing, reading.unusable))


async def _take_over(house: House, caller: Caller, new: Sequence[OldGeneration]) -> int:
    """How many of their files were not found."""
    started = trio.current_time()
    missing = 0
    for start in range(0, len(new), BATCH_MAX):
        await caller.progress(trio.current_time() - started, f"{start:,} of {len(new):,} generations imported")
        batch = await trio.to_thread.run_sync(_looked_at, new[start : start + BATCH_MAX])
        await _record(house, batch)
        missing += sum(image is None for imported, _ in batch for image in imported.images)
    return missing


async def offer(house: House, settings: Settings) -> str:
    """One sentence about an old history that is not here yet, or nothing. Never fails, and never takes long."""
    if house.desk.importing.locked():
        return ""
    for path in settings.old_history:
        count = 0
        with trio.move_on_after(OFFER_SECONDS_MAX):
            # Abandoned: it only reads. Its place is taken until it comes back, so that no second one joins it.
            count = await trio.to_thread.run_sync(
                partial(_count_new, house, path), limiter=house.desk.offering, abandon_on_cancel=True
            )
        if count:
            held = "1 generation that is not here" if count == 1 else f"{count:,} generations that are not here"
            return f"The old history {path} holds {held}; to take them over run: imaged import-history {shlex.quote(str(path))}"
    return ""


def _chosen(told: str | None, places: Sequence[Path]) -> Path:
    """Blocking."""
    if told is not None:
        if not told.startswith("/") or "\0" in told:
            raise Refused(
                f"path is {told[:200]!r}; give the absolute path of the old database, such as "
                "/home/you/.openai-gpt-image/history.db.",
                code="bad_arguments",
                argument="path",
            )
        return Path(told)
    for place in places:
        if old_history.state(place) is not None:
            return place
    looked_at = ", ".join(str(place) for place in places) or "no place, because this client names no output directory"
    raise Refused(
        f"No database of {old_history.SOURCE} was found; looked at {looked_at}. Give its path.",
        code="not_there",
        argument="path",
    )


def _read(history: History, path: Path) -> _Reading:
    """Blocking. Reads to the end and closes the old database before any file that it names is opened.

    Closing a file drops every lock that this process has on it, SQLite's too, and a row may name the database itself.
    """
    generations: dict[str, OldGeneration] = {}
    unusable: list[Unusable] = []
    read, failure = 0, None
    try:
        with closing(old_history.read(path)) as rows:
            for row in rows:
                if isinstance(row, Unusable):
                    unusable.append(row)
                else:
                    read += 1
                    generations.setdefault(row.uuid, row)
    except FileFailed as exc:
        failure = exc
    unknown = history.unknown_of(list(generations))
    new = tuple(one for uuid, one in generations.items() if uuid in unknown)
    return _Reading(new, read - len(new), tuple(unusable), failure)


def _looked_at(batch: Sequence[OldGeneration]) -> list[tuple[HistoryImported, Words]]:
    """Blocking: opens and hashes every file."""
    return [(_imported(old), Words(salt="", prompt=old.prompt, paths=old.paths)) for old in batch]


def _imported(old: OldGeneration) -> HistoryImported:
    return HistoryImported(
        job=old.uuid,
        source=old_history.SOURCE,
        created_at=old.created_at,
        request=old.request,
        images=tuple(old_history.picture_at(path) for path in old.paths),
        cost=Cost(amount=None, basis="imported", table="", claimed=old.claimed),
        usage=old.usage,
    )


async def _record(house: House, batch: Sequence[tuple[HistoryImported, Words]]) -> None:
    """Every generation in a commit of its own, all of them behind one sync; durable when it returns.

    Posted, and the last one recorded: that demands the sync for all. A nursery of `record`s would do the same, but
    wrap a refusal or a broken log into a group that nobody above catches.
    """
    # Shielded: whoever imports next must find these in the index or on the board. Bounded by one local write and sync.
    with trio.CancelScope(shield=True):
        *others, last = batch
        for imported, words in others:
            await house.ledger.post(decisions.import_generation(imported, words))
        await house.ledger.record(decisions.import_generation(*last))


def _count_new(house: House, path: Path) -> int:
    """Blocking. Answered from memory while neither the old database nor, by an import, this history has changed."""
    state = old_history.state(path)
    if state is None:
        return 0
    key = (house.places.home, path, state, house.desk.imports)
    count = house.desk.offers.get(key)
    if count is None:
        try:
            count = len(house.history.unknown_of(old_history.uuids(path)))
        except (FileFailed, IndexUnavailable) as exc:
            logger.debug("an old history cannot be looked at", extra={"why": str(exc)})
            count = 0
        if len(house.desk.offers) >= OFFERS_KEPT_MAX:
            house.desk.offers.clear()
        house.desk.offers[key] = count
    return count


def _result(path: Path, imported: int, already_there: int, missing: int, unusable: Sequence[Unusable]) -> HistoryImport:
    shown = tuple(f"{row}: {sentence}." for row, sentence in unusable[:UNUSABLE_SHOWN_MAX])
    left_out = len(unusable) - len(shown)
    found = imported + already_there + len(unusable)
    message = f"{path}: {found:,} found, {imported:,} imported, {already_there:,} already here, {len(unusable):,} unusable."
    if missing:
        message += f" Files that are gone or no whole pictures: {missing:,}; what is known of them was imported all the same."
    if imported:
        message += " What the old program believed they cost is kept as its claim and counted nowhere."
    return HistoryImport(
        path=str(path),
        found=found,
        imported=imported,
        already_there=already_there,
        missing_files=missing,
        unusable=(*shown, f"and {left_out:,} more.") if left_out else shown,
        message=message,
    )
