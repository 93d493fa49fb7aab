"""The pictures that an edit starts from: found, read, vetted and cleaned before anything is ordered.

Rule: whatever the asker meant by a reference - a file, an earlier generation, bytes in the call - is bytes from
here on, snapshotted into the store when the job is ordered; the file may change or go afterwards. Nothing is put
into the store before everything about the order has been found possible.
"""

import re
from functools import partial
from typing import NamedTuple

import trio

from daemon.arguments import Redraw, Retouch
from daemon.errors import Refused
from daemon.house import House
from daemon.session import Caller
from eventlog.jobs import Job
from eventlog.values import JobState, Picture, digest
from tools import inputs, sources
from tools.errors import FileFailed
from tools.models import catalogue
from tools.sources import Source
from tools.store import Store

NAME_SHOWN_MAX = 200  # characters of a reference as it is told later
_GENERATION = re.compile(
    r"(?:imaged://(?:image|generation)/)?([0-9a-fA-F]{8}-(?:[0-9a-fA-F]{4}-){3}[0-9a-fA-F]{12})(?:/([1-9][0-9]?))?"
)
# How the base64 of a png, jpeg, webp, gif or bmp begins. A path that looks so for a hundred characters does not exist.
_BASE64_PICTURE = re.compile(r"(iVBORw0KGgo|/9j/|UklGR|R0lGOD|Qk)[A-Za-z0-9+/=_\s-]{100}")


class Snapshot(NamedTuple):
    """Vetted pictures that are in memory still. `names` says what the asker called the references, one for each."""

    references: tuple[Source, ...] = ()
    names: tuple[str, ...] = ()
    mask: Source | None = None
    markup: Source | None = None
    warnings: tuple[str, ...] = ()

    def put(self, store: Store) -> None:
        """Into the store, durably. Blocking.

        Raises:
            FileFailed
        """
        for source in (*self.references, self.mask, self.markup):
            if source is not None:
                store.put(source.data)


class _Wanted(NamedTuple):
    """One reference as it was given, and the argument it came in."""

    argument: str
    text: str
    inline: bool


def picture(source: Source) -> Picture:
    return Picture(
        sha256=digest(source.data),
        size_bytes=len(source.data),
        width=source.width,
        height=source.height,
        format=source.format,
    )


async def gather(house: House, caller: Caller, asked: Redraw) -> Snapshot:
    """Every picture of one order.

    Raises:
        Refused: one of them cannot be used; the sentence says which and why.
    """
    wanted, warnings = _wanted(asked)
    inputs_max = catalogue().limits.edit_inputs_max
    if len(wanted) > inputs_max:
        raise Refused(
            f"{len(wanted)} reference images were given; at most {inputs_max} are allowed.",
            code="too_many_references",
            argument="reference_images",
        )
    references = [await _vetted(house, caller, one) for one in wanted]
    mask = markup = None
    if isinstance(asked, Retouch) and references:
        mask = await _overlay(house, caller, asked.mask_image_path, asked.mask_image_base64, "mask_image", references[0])
        markup = await _overlay(house, caller, asked.markup_image_path, asked.markup_image_base64, "markup_image", references[0])
    return Snapshot(tuple(references), _names(wanted), mask, markup, warnings)


def names(asked: Redraw) -> tuple[str, ...]:
    """What the asker called the references of an order: paths and ids as they are, inline pictures by their digest."""
    return _names(_wanted(asked)[0])


def _names(wanted: list[_Wanted]) -> tuple[str, ...]:
    told = (f"{digest(one.text.encode())[:16]}… (inline)" if one.inline else one.text for one in wanted)
    return tuple(name[:NAME_SHOWN_MAX] for name in told)


def _wanted(asked: Redraw) -> tuple[list[_Wanted], tuple[str, ...]]:
    wanted, warnings = [], []
    if asked.reference_image_path is not None:
        wanted.append(_Wanted("reference_image_path", asked.reference_image_path, inline=False))
        if asked.reference_image_base64 is not None:
            warnings.append("reference_image_base64 was not used, because reference_image_path was given, too.")
    elif asked.reference_image_base64 is not None:
        wanted.append(_Wanted("reference_image_base64", asked.reference_image_base64, inline=True))
    for text in asked.reference_images or ():
        inline = text.startswith("data:") or _BASE64_PICTURE.match(text) is not None
        wanted.append(_Wanted("reference_images", text, inline=inline))
    return wanted, tuple(warnings)


async def _vetted(house: House, caller: Caller, wanted: _Wanted) -> Source:
    generation = None if wanted.inline else _GENERATION.fullmatch(wanted.text.strip())
    if generation is None:
        return await trio.to_thread.run_sync(partial(_read, caller, wanted), limiter=house.vetting)
    job = await house.find_job(generation[1].lower())
    data = await trio.to_thread.run_sync(partial(_drawn, house, caller, job, wanted, int(generation[2] or 1)))
    return await trio.to_thread.run_sync(partial(sources.vet, data, name=wanted.argument), limiter=house.vetting)


def _read(caller: Caller, wanted: _Wanted) -> Source:
    """Blocking."""
    data = _bytes(caller, wanted, catalogue().limits.edit_input_bytes_max)
    return sources.vet(data, name=wanted.argument)


def _bytes(caller: Caller, wanted: _Wanted, bytes_max: int) -> bytes:
    """Of a file or of the call itself. Blocking."""
    if wanted.inline:
        return sources.decode(wanted.text, name=wanted.argument, bytes_max=bytes_max)
    try:
        return inputs.read(wanted.text, caller.session.settings.input_roots, name=wanted.argument, bytes_max=bytes_max)
    except FileFailed as exc:
        raise _no(str(exc), exc.code, wanted) from exc


def _drawn(house: House, caller: Caller, job: Job | None, wanted: _Wanted, number: int) -> bytes:
    """A picture of an earlier generation, as it was received. Blocking."""
    if job is None:
        raise _no(f"There is no generation {wanted.text}; list_history shows the ids there are.", "no_such_job", wanted)
    if not (job.state is JobState.COMPLETED or job.images):
        raise _no(f"Job {job.id} is {job.state.value} and has no picture to start from.", "not_completed", wanted)
    if number > len(job.images):
        raise _no(f"{wanted.text} names picture {number}, but the generation has {len(job.images)}.", "no_such_image", wanted)
    image = job.images[number - 1]
    try:
        return house.original(job, image, caller.session.settings.input_roots)
    except FileFailed as exc:
        raise _no(f"The picture of {wanted.text} is gone. {exc}", exc.code, wanted) from exc


async def _overlay(house: House, caller: Caller, path: str | None, base64: str | None, stem: str, first: Source) -> Source | None:
    """The mask or the markup, checked against the picture it belongs to; None if none was given."""
    if path is None and base64 is None:
        return None
    wanted = _Wanted(f"{stem}_base64", base64 or "", inline=True)
    if path is not None:
        wanted = _Wanted(f"{stem}_path", path, inline=False)
    limits = catalogue().limits

    def read() -> Source:
        if stem == "mask_image":
            return sources.check_mask(_bytes(caller, wanted, limits.mask_bytes_max), first, name=wanted.argument)
        return sources.check_markup(_bytes(caller, wanted, limits.edit_input_bytes_max), first, name=wanted.argument)

    return await trio.to_thread.run_sync(read, limiter=house.vetting)


def _no(sentence: str, code: str, wanted: _Wanted) -> Refused:
    return Refused(sentence, code=code, argument=wanted.argument)
