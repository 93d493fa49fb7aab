"""From a batch file, the command line and the environment to what the daemon will be asked for.

Rule: whatever can be refused is refused here, all of it at once, before anything is asked for. Blocking: reads the
file and the pictures that its jobs start from. Paths are made absolute here; relative ones mean the working directory.
"""

import os
import secrets
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path

import msgspec

from daemon import arguments, bridge, config
from daemon.arguments import StartGenerationJob
from daemon.config import Settings
from daemon.errors import BadConfiguration, Refused
from daemon.keyring import RUNNING_MAX_DEFAULT
from eventlog import audit
from eventlog.events import JobRequested
from eventlog.values import CostRange, ImageRequest, Picture, digest
from tools import batch_config, inputs, models, pricing
from tools import sources as vetting
from tools.batch_config import BatchFile, BatchJob, Fault, Pace, Retries, Sources
from tools.errors import FileFailed
from tools.names import parse_output
from tools.sources import Source

CONFIG_BYTES_MAX = 32 * 1024 * 1024  # a hundred prompts of the longest kind, every character escaped
FAULTS_SHOWN_MAX = 50


class Options(msgspec.Struct, frozen=True, kw_only=True):
    """The command line's part. None: not said. `run` names the run that `again` began and that is to be continued."""

    path: Path
    output_dir: str | None = None
    max_concurrent: int | None = None
    timeout_ms: int | None = None
    any_path: bool = False
    again: bool = False
    run: str = ""


class Order(msgspec.Struct, frozen=True, kw_only=True):
    """One job of the batch: what is sent for it, what it may cost, and the name that makes it the same job next time."""

    job: BatchJob
    model: str
    arguments: dict[str, object]
    estimate: CostRange
    identity: str


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """`settings` are those of the session that asks. `run` is empty, or what tells this run's jobs from all others.
    `request_keys` are the digests under which the log knows the first try of each job.
    """

    orders: tuple[Order, ...]
    request_keys: frozenset[str]
    settings: dict[str, str]
    can_draw: bool
    pace: Pace
    retries: Retries
    run: str
    warnings: tuple[str, ...]


class _Found(msgspec.Struct, frozen=True, kw_only=True):
    job: BatchJob
    request: ImageRequest
    references: tuple[str, ...]
    mask: str | None
    markup: str | None


def make(options: Options, environ: Mapping[str, str]) -> Plan:
    """The whole plan.

    Raises:
        BadConfiguration: with every fault of the file, each by its place; nothing has been asked for.
    """
    file = batch_config.parse(_read(options.path))
    pace, faults = batch_config.pace(file, environ, max_concurrent=options.max_concurrent, timeout_ms=options.timeout_ms)
    given, settings = _session(options, file, pace, environ)
    desk = _Desk(settings)
    found = [found for job in file.jobs if (found := desk.look_at(job)) is not None]
    faults = (*file.faults, *faults, *desk.faults)
    if faults:
        raise BadConfiguration(_sentence(options.path, faults))
    run = options.run or (secrets.token_hex(4) if options.again else "")
    names = batch_config.identities(
        [(one.job, one.request) for one in found],
        output_dir=str(settings.output_dir),
        endpoint=settings.account.base_url or settings.account.backend,
        run=run,
    )
    return Plan(
        orders=tuple(_order(one, name) for one, name in zip(found, names, strict=True)),
        request_keys=frozenset(_request_key(batch_config.key(name, 0), settings) for name in names),
        settings=given,
        can_draw=settings.can_draw,
        pace=pace,
        retries=file.retries,
        run=run,
        warnings=tuple(dict.fromkeys((*file.warnings, *desk.warnings))),
    )


def insist_on_run(plan: Plan, name: str, events: Path) -> None:
    """Looks into the log itself, whether or not a daemon runs.

    Raises:
        BadConfiguration: no job of this plan was ever ordered in the run of this name, so all would be paid for anew.
        EventLogError: the log is damaged or too new.
    """
    for located in audit.commits(events) if events.exists() else ():
        for event in located.commit.events:
            if isinstance(event, JobRequested) and event.request_key in plan.request_keys:
                return
    raise BadConfiguration(
        f"--run is {name!r}, but no job of this batch file was ordered in a run of that name with these settings; nothing "
        "was asked for. Give the name that --again said, or --again to draw everything anew."
    )


def _request_key(key: str, settings: Settings) -> str:
    """As daemon/drawing.py has it recorded: the key as one account uses it."""
    return digest(msgspec.json.encode([settings.account, digest(key.encode())]))


def _read(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            data = file.read(CONFIG_BYTES_MAX + 1)
    except OSError as exc:
        raise BadConfiguration(f"The batch file {path} cannot be read: {exc.strerror}.") from exc
    if len(data) > CONFIG_BYTES_MAX:
        raise BadConfiguration(f"The batch file {path} has more than {CONFIG_BYTES_MAX:,} bytes; split it.")
    return data


def _session(options: Options, file: BatchFile, pace: Pace, environ: Mapping[str, str]) -> tuple[dict[str, str], Settings]:
    """What our session tells the daemon, and what the daemon will make of it."""
    given = bridge.settings_of(environ)
    own = Settings.parse(given, home_dir=config.user_home())
    wanted = options.output_dir or file.output_dir
    given["OPENAI_IMAGE_OUTPUT_DIR"] = _absolute(wanted) if wanted else str(own.output_dir)
    # A folder with the separator in its name cannot stand in the list; its pictures are refused with a sentence.
    roots = [str(own_dir) for own_dir in own.input_roots] + [str(Path.cwd()), str(options.path.absolute().parent)]
    roots += ["/"] if options.any_path else []
    given["OPENAI_IMAGE_INPUT_DIR"] = os.pathsep.join(root for root in dict.fromkeys(roots) if os.pathsep not in root)
    given["IMAGED_MAX_CONCURRENT"] = str(max(own.max_concurrent or RUNNING_MAX_DEFAULT, pace.max_concurrent))
    if options.any_path:
        given["OPENAI_IMAGE_ALLOW_ANY_PATH"] = "true"
    return given, Settings.parse(given, home_dir=config.user_home())


class _Desk:
    """Looks at one job after the other and remembers what is wrong with them, and the pictures that it has read."""

    def __init__(self, settings: Settings) -> None:
        self.faults: list[Fault] = []
        self.warnings: list[str] = []
        self._settings = settings
        self._vetted: dict[str, tuple[Source, Picture]] = {}  # by path; without the bytes, which may be many
        self._today = datetime.now(UTC).date()

    def look_at(self, job: BatchJob) -> _Found | None:
        """None if it cannot be drawn."""
        place = f"jobs[{job.index}]"
        references = tuple(_absolute(path) for path in job.references)
        mask, markup = (path and _absolute(path) for path in (job.mask, job.markup))
        try:
            sources = self._sources(references, mask, markup)
        except (Refused, FileFailed) as exc:
            self.faults.append(Fault(job.index, f"{place}: {exc}"))
            return None
        request = batch_config.request(job, default_model=self._settings.model, sources=sources)
        found = _Found(job=job, request=request, references=references, mask=mask, markup=markup)
        try:
            warnings = models.check(request, job.prompt, self._today)
            parse_output(
                job.output_path, self._settings.output_dir, any_path=self._settings.any_path, output_format=job.output_format
            )
            arguments.parse("start_generation_job", _arguments(found), StartGenerationJob)
        except Refused as refused:
            self.faults.append(Fault(job.index, f"{place}: {refused}"))
            return None
        self.warnings += [f"{place}: {warning}" for warning in warnings]
        return found

    def _sources(self, references: tuple[str, ...], mask: str | None, markup: str | None) -> Sources:
        """Read and vetted by the daemon's own rules. Raises Refused or FileFailed."""
        argument = "reference_images" if len(references) > 1 else "reference_image_path"
        for path in references:
            if path not in self._vetted:
                data, name = self._read(path, argument)
                vetted = vetting.vet(data, name=name)
                self._vetted[path] = vetted._replace(data=b""), _picture(data, vetted)
        found = [self._vetted[path] for path in references]
        return Sources(
            references=tuple(read for _, read in found),
            mask=self._overlay(mask, "mask_image_path", vetting.check_mask, found[0][0]) if mask else None,
            markup=self._overlay(markup, "markup_image_path", vetting.check_markup, found[0][0]) if markup else None,
        )

    def _overlay(self, path: str, argument: str, check: Callable[..., Source], first: Source) -> Picture:
        data, name = self._read(path, argument)
        return _picture(data, check(data, first, name=name))

    def _read(self, path: str, argument: str) -> tuple[bytes, str]:
        """The file's bytes, and what to call it in a sentence."""
        bytes_max = models.catalogue().limits.edit_input_bytes_max
        data = inputs.read(path, self._settings.input_roots, name=argument, bytes_max=bytes_max)
        return data, f"{argument} {inputs.visible(path)}"


def _picture(data: bytes, vetted: Source) -> Picture:
    """With the digest of the file as it is: how it is cleaned before it leaves may change from version to version."""
    return Picture(sha256=digest(data), size_bytes=len(data), width=vetted.width, height=vetted.height, format=vetted.format)


def _order(found: _Found, identity: str) -> Order:
    return Order(
        job=found.job,
        model=found.request.model,
        arguments=_arguments(found),
        estimate=pricing.estimate(found.request, found.job.prompt),
        identity=identity,
    )


def _arguments(found: _Found) -> dict[str, object]:
    """Of `start_generation_job`, without the idempotency key. The model is named: settings may differ next time."""
    job = found.job
    given: dict[str, object] = {
        "tool_name": job.tool,
        "prompt": job.prompt,
        "output_path": job.output_path,
        "model": found.request.model,
        "size": job.size,
        "quality": job.quality,
        "output_format": job.output_format,
        "background": job.background,
        "moderation": job.moderation,
        "sample_count": job.sample_count,
    }
    several = len(found.references) > 1
    more: dict[str, object | None] = {
        "output_compression": job.output_compression,
        "input_fidelity": job.input_fidelity,
        "reference_image_path": found.references[0] if found.references and not several else None,
        "reference_images": list(found.references) if several else None,
        "mask_image_path": found.mask,
        "markup_image_path": found.markup,
    }
    return given | {name: value for name, value in more.items() if value is not None}


def _absolute(path: str) -> str:
    """Below the working directory if it is relative; `~` is the user's home. Not resolved: links are the daemon's matter."""
    if path == "~" or path.startswith("~/"):
        return os.path.normpath(config.user_home() / path[2:])
    return os.path.normpath(Path.cwd() / path)


def _sentence(path: Path, faults: tuple[Fault, ...]) -> str:
    ordered = [audit.harmless(fault.sentence) for fault in sorted(faults, key=lambda fault: fault.job)]
    more = [f"… and {len(ordered) - FAULTS_SHOWN_MAX} more."] if len(ordered) > FAULTS_SHOWN_MAX else []
    lines = [f"The batch file {path} cannot be run; nothing was asked for:", *ordered[:FAULTS_SHOWN_MAX], *more]
    return "\n  ".join(lines)
