"""A batch file: what it may say, every fault in it by its place, and the jobs that it asks for.

Rule: pure. All faults of a file are found before one is told, because nothing of a file with a fault is drawn.
What is not known in it is ignored with a warning: files that were written for another program must run unchanged.
"""

import difflib
import json
from collections.abc import Iterable, Mapping
from typing import Annotated, Any, Literal, NamedTuple

import msgspec
from msgspec import Meta

from eventlog.values import ImageRequest, Picture, Tool, digest
from tools.models import BACKGROUNDS, FORMATS, MODERATIONS, catalogue
from tools.names import SUFFIXES

JOBS_MAX = 100
VALUE_SHOWN_MAX = 80  # characters of a wrong value that a sentence repeats
WHOLE_FILE = -1  # the job of a fault that belongs to none
MAX_CONCURRENT_NAME, TIMEOUT_NAME = "OPENAI_BATCH_MAX_CONCURRENT", "OPENAI_BATCH_TIMEOUT"

_LIMITS = catalogue().limits
_QUALITIES = ("auto", *dict.fromkeys(quality for model in catalogue().models for quality in model.qualities))
_TOOLS: Mapping[str, Tool] = {"generate": "generate_image", "edit": "edit_image", "transform": "transform_image"}
_Text = Annotated[str, Meta(min_length=1)]


class Fault(NamedTuple):
    """`job` counts from 0, as in the sentence."""

    job: int
    sentence: str


class Retries(msgspec.Struct, frozen=True):
    """When a job that failed without being billed is asked for again. The delay is in milliseconds."""

    retries_max: int = 2
    delay_ms: int = 5000
    on_errors: tuple[str, ...] = ("rate_limit", "timeout")

    def wants(self, code: str, message: str) -> bool:
        """Whether one of the patterns stands in the code or the message; case, “_”, “-” and spaces do not matter."""
        said = _loose(f"{code} {message}")
        patterns = [_loose(pattern) for pattern in self.on_errors]
        if "timeout" in patterns:
            patterns.append("timed out")
        return any(pattern in said for pattern in patterns)


class BatchJob(msgspec.Struct, frozen=True, kw_only=True):
    """One order. `index` counts from 0. Paths are as they were written; `model` is None where the file names none."""

    index: int
    tool: Tool
    prompt: str
    output_path: str
    references: tuple[str, ...] = ()
    mask: str | None = None
    markup: str | None = None
    model: str | None = None
    input_fidelity: str | None = None
    size: str = "auto"
    quality: str = "auto"
    output_format: str = "png"
    background: str = "auto"
    output_compression: int | None = None
    moderation: str = "auto"
    sample_count: int = 1
    return_base64: bool = False


class BatchFile(msgspec.Struct, frozen=True, kw_only=True):
    """`jobs` are those without a fault. None: the file does not say."""

    jobs: tuple[BatchJob, ...] = ()
    output_dir: str | None = None
    max_concurrent: int | None = None
    timeout_ms: int | None = None
    retries: Retries = Retries()
    faults: tuple[Fault, ...] = ()
    warnings: tuple[str, ...] = ()


class Pace(msgspec.Struct, frozen=True):
    """How many jobs of the batch at once, and for how many milliseconds in all."""

    max_concurrent: int = 2
    timeout_ms: int = 600_000


class Sources(msgspec.Struct, frozen=True):
    """The pictures that one job starts from, as they are on the disk now."""

    references: tuple[Picture, ...] = ()
    mask: Picture | None = None
    markup: Picture | None = None


class _Field(NamedTuple):
    kind: Any
    allowed: str


def _one_of(values: Iterable[str]) -> _Field:
    names = tuple(values)
    return _Field(Literal[names], ", ".join(names))


def _whole(low: int, high: int, unit: str = "") -> _Field:
    return _Field(Annotated[int, Meta(ge=low, le=high)], f"a whole number from {low:,} to {high:,}{unit}")


_PATH = _Field(_Text, "the path of a picture")
_SWITCH = _Field(bool, "true or false")
_MAX_CONCURRENT = _whole(1, 10)
_TIMEOUT = _whole(1000, 3_600_000, " (milliseconds)")

_JOB: Mapping[str, _Field] = {
    "operation": _one_of(_TOOLS),
    "prompt": _Field(str, "text"),
    "output_path": _Field(_Text, "a file name"),
    "reference_image_path": _PATH,
    "reference_images": _Field(
        Annotated[tuple[_Text, ...], Meta(min_length=1, max_length=_LIMITS.edit_inputs_max)],
        f"a list of 1 to {_LIMITS.edit_inputs_max} paths of pictures",
    ),
    "mask_image_path": _PATH,
    "markup_image_path": _PATH,
    "model": _Field(Annotated[str, Meta(min_length=1, max_length=100)], f"a name such as {catalogue().default}"),
    "input_fidelity": _one_of(("low", "high")),
    "size": _Field(
        Annotated[str, Meta(pattern=r"^(auto|[1-9][0-9]{1,3}x[1-9][0-9]{1,3})$")],
        "auto or WIDTHxHEIGHT in pixels, such as 1024x1024",
    ),
    "quality": _one_of(_QUALITIES),
    "output_format": _one_of(FORMATS),
    "transparent_background": _SWITCH,
    "background": _one_of(BACKGROUNDS),
    "output_compression": _whole(0, 100),
    "moderation": _one_of(MODERATIONS),
    "sample_count": _whole(1, _LIMITS.count_max),
    "return_base64": _SWITCH,
}
_POLICY: Mapping[str, _Field] = {
    "max_retries": _whole(0, 5),
    "retry_delay_ms": _whole(100, 60_000, " (milliseconds)"),
    "retry_on_errors": _Field(tuple[_Text, ...], 'a list of texts such as "rate_limit"'),
}
_FILE: Mapping[str, _Field] = {
    "jobs": _Field(Annotated[list[Any], Meta(min_length=1, max_length=JOBS_MAX)], f"a list of 1 to {JOBS_MAX} jobs"),
    "output_dir": _Field(_Text, "the path of a folder"),
    "max_concurrent": _MAX_CONCURRENT,
    "timeout": _TIMEOUT,
    "retry_policy": _Field(dict[str, Any], f"an object with {', '.join(_POLICY)}"),
}


def parse(data: bytes) -> BatchFile:
    """Everything that can be understood, and a fault for everything that cannot."""
    try:
        given = json.loads(data.decode("utf-8-sig"))
    except UnicodeDecodeError as exc:
        return _hopeless(f"It is not text in UTF-8: byte {exc.start:,} does not fit; save it again as UTF-8.")
    except json.JSONDecodeError as exc:
        return _hopeless(f"It is not JSON: {exc.msg} at line {exc.lineno}, column {exc.colno}.")
    except (RecursionError, ValueError):  # nested deeper, or a number longer, than anybody means it
        return _hopeless("It is not JSON that can be read: it is nested too deeply, or a number in it is too long.")
    if not isinstance(given, dict):
        return _hopeless(f'It holds {_shown(given)}; a batch file is an object such as {{"jobs": [{{"prompt": "A fox"}}]}}.')
    reader = _Reader()
    values = reader.read("", given, _FILE)
    if given.get("jobs") is None:
        reader.fault('The file has no jobs; add "jobs": [{"prompt": "…"}].')
    policy = reader.read("retry_policy.", values.get("retry_policy", {}), _POLICY)
    jobs = [reader.job(index, job) for index, job in enumerate(values.get("jobs", ()))]
    return BatchFile(
        jobs=tuple(job for job in jobs if job is not None),
        output_dir=values.get("output_dir"),
        max_concurrent=values.get("max_concurrent"),
        timeout_ms=values.get("timeout"),
        retries=Retries(
            retries_max=policy.get("max_retries", Retries().retries_max),
            delay_ms=policy.get("retry_delay_ms", Retries().delay_ms),
            on_errors=policy.get("retry_on_errors", Retries().on_errors),
        ),
        faults=tuple(reader.faults),
        warnings=tuple(reader.warnings),
    )


def pace(
    file: BatchFile, environ: Mapping[str, str], *, max_concurrent: int | None, timeout_ms: int | None
) -> tuple[Pace, tuple[Fault, ...]]:
    """The command line's word before the file's, before the environment's, before our own."""
    reader = _Reader()

    def settle(asked: int | None, in_file: int | None, name: str, field: _Field, otherwise: int) -> int:
        if asked is not None or in_file is not None:
            return asked if asked is not None else in_file or otherwise
        text = environ.get(name, "").strip()
        value = int(text) if text.isascii() and text.isdigit() and len(text) < 10 else text
        return int(reader.read("", {name: value}, {name: field}).get(name, otherwise)) if text else otherwise

    settled = Pace(
        max_concurrent=settle(max_concurrent, file.max_concurrent, MAX_CONCURRENT_NAME, _MAX_CONCURRENT, Pace().max_concurrent),
        timeout_ms=settle(timeout_ms, file.timeout_ms, TIMEOUT_NAME, _TIMEOUT, Pace().timeout_ms),
    )
    return settled, tuple(reader.faults)


def request(job: BatchJob, *, default_model: str, sources: Sources) -> ImageRequest:
    """What the daemon will ask OpenAI for."""
    return ImageRequest(
        tool=job.tool,
        model=job.model or default_model,
        count=job.sample_count,
        size=job.size,
        quality=job.quality,
        output_format=job.output_format,
        background=job.background,
        moderation=job.moderation,
        output_compression=job.output_compression,
        sources=sources.references,
        mask=sources.mask,
        markup=sources.markup,
        input_fidelity=job.input_fidelity,
    )


def identities(jobs: Iterable[tuple[BatchJob, ImageRequest]], *, output_dir: str, endpoint: str, run: str) -> tuple[str, ...]:
    """For each job 64 hex digits that are the same as long as the same picture is meant, whatever file it stands in.

    Jobs that are alike are told apart by which of them it is, not by their place among the others: a job that is
    put in front of them must not make all the rest be paid for again. `endpoint` is where the pictures come from,
    so that what was tried offline is drawn when it is asked for in earnest.
    """
    seen: dict[str, int] = {}
    found = []
    for job, asked in jobs:
        # Named one by one, and what is not given left out: these texts stand on people's disks as digests, and a
        # parameter that a later version adds must not change those of files that do not use it.
        meant = {
            "tool": asked.tool,
            "prompt": job.prompt,
            "output_path": job.output_path,
            "output_dir": output_dir,
            "endpoint": endpoint,
            "model": asked.model,
            "count": asked.count,
            "size": asked.size,
            "quality": asked.quality,
            "output_format": asked.output_format,
            "background": asked.background,
            "moderation": asked.moderation,
            "output_compression": asked.output_compression,
            "input_fidelity": asked.input_fidelity,
            "sources": [source.sha256 for source in asked.sources] or None,
            "mask": asked.mask and asked.mask.sha256,
            "markup": asked.markup and asked.markup.sha256,
            "run": run or None,
        }
        text = json.dumps({name: value for name, value in meant.items() if value is not None}, sort_keys=True)
        number = seen[text] = seen.get(text, 0) + 1
        found.append(digest(f"{number} {text}".encode()))
    return tuple(found)


def key(identity: str, number: int) -> str:
    """The idempotency key of one try of a job; the first is number 0."""
    return f"batch-{identity}-{number}" if number else f"batch-{identity}"


class _Reader:
    """Reads objects field by field and remembers what was wrong with them."""

    def __init__(self) -> None:
        self.faults: list[Fault] = []
        self.warnings: list[str] = []

    def fault(self, sentence: str, job: int = WHOLE_FILE) -> None:
        self.faults.append(Fault(job, sentence))

    def read(self, place: str, given: Mapping[str, Any], fields: Mapping[str, _Field], job: int = WHOLE_FILE) -> dict[str, Any]:
        """The good values; what is null counts as left out."""
        values = {}
        for name, value in given.items():
            field = fields.get(name)
            if field is None:
                self._warn_of(place, name, fields)
            elif value is not None:
                try:
                    values[name] = msgspec.convert(_plain(name, value), field.kind)
                except msgspec.ValidationError:
                    self.fault(f"{place}{name} is {_shown(value)}; allowed is {field.allowed}.", job)
        return values

    def _warn_of(self, place: str, name: str, fields: Mapping[str, _Field]) -> None:
        nearest = difflib.get_close_matches(name.lower(), fields, n=1)
        hint = f"; did you mean {nearest[0]}?" if nearest else "."
        self.warnings.append(f"{place}{_bare(name)} is not known and is ignored{hint}")

    def job(self, index: int, given: object) -> BatchJob | None:
        """None if it has a fault."""
        place = f"jobs[{index}]"
        if not isinstance(given, dict):
            self.fault(f'{place} is {_shown(given)}; a job is an object such as {{"prompt": "A fox"}}.', index)
            return None
        before = len(self.faults)
        values = self.read(place + ".", given, _JOB, index)
        if given.get("prompt") is None:
            self.fault(f"{place} has no prompt; say what to draw.", index)
        operation = values.pop("operation", "generate")
        references = self._references(place, operation, values, given, index)
        for name in ("mask_image_path", "markup_image_path"):
            if name in values and operation != "edit":
                self.fault(f"{place}.{name} is given, but operation is {operation}; it is for operation edit only.", index)
        if operation == "generate" and values.pop("input_fidelity", None):
            self.warnings.append(f"{place}.input_fidelity is ignored: there is no picture that operation generate could keep to.")
        background = self._background(place, values, index)
        if len(self.faults) > before:
            return None
        output_format = values.get("output_format", "png")
        values.setdefault("output_path", f"batch_{index + 1}{SUFFIXES[output_format][0]}")
        mask, markup = values.pop("mask_image_path", None), values.pop("markup_image_path", None)
        return BatchJob(
            index=index,
            tool=_TOOLS[operation],
            references=references,
            mask=mask,
            markup=markup,
            background=background,
            **values,
        )

    def _references(
        self, place: str, operation: str, values: dict[str, Any], given: Mapping[str, Any], index: int
    ) -> tuple[str, ...]:
        one: str | None = values.pop("reference_image_path", None)
        several: tuple[str, ...] = values.pop("reference_images", ())
        named = [name for name in ("reference_image_path", "reference_images") if given.get(name) is not None]
        if operation == "generate" and named:
            self.fault(
                f"{place}.{named[0]} is given, but operation is generate, which starts from no picture; set operation to "
                "edit or transform.",
                index,
            )
        if operation != "generate" and not named:
            self.fault(f"{place} has no reference_image_path; operation {operation} needs a picture to start from.", index)
        return (one, *several) if one else several

    def _background(self, place: str, values: dict[str, Any], index: int) -> str:
        transparent: bool = values.pop("transparent_background", False)
        background: str = values.pop("background", "transparent" if transparent else "auto")
        if transparent and background == "opaque":
            self.fault(f"{place}.transparent_background is true, but background is opaque; leave one of them out.", index)
        return "transparent" if transparent else background


def _plain(name: str, value: object) -> object:
    """2.0 is a whole number to whoever wrote it, and earlier programs took HIGH for high."""
    if isinstance(value, float) and value.is_integer():
        return int(value)
    return value.lower() if name == "quality" and isinstance(value, str) else value


def _hopeless(sentence: str) -> BatchFile:
    return BatchFile(faults=(Fault(WHOLE_FILE, sentence),))


def _loose(text: str) -> str:
    return " ".join(text.lower().replace("_", " ").replace("-", " ").split())


def _shown(value: object) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return _bare(text if len(text) <= VALUE_SHOWN_MAX else text[:VALUE_SHOWN_MAX] + "…")


def _bare(text: str) -> str:
    """Bounded and without what acts on a terminal."""
    return "".join(c if c.isprintable() else "?" for c in text[: VALUE_SHOWN_MAX + 1])
