"""The readable twin of every result: plain lines, the most wanted first."""

from daemon.consent import Approval
from daemon.daemon_state import Status, Stopping
from daemon.forgetting import Forgotten
from daemon.money import ModelFacts, ModelList, SpendingReport, Spent
from daemon.results import (
    HistoryImport,
    HistoryPage,
    ImageMetadata,
    ImagesPage,
    JobPage,
    JobReport,
    JobsNow,
    JobSummary,
    Result,
)
from eventlog.audit import harmless
from eventlog.values import MicroUSD
from tools import pricing


def text(result: Result) -> str:
    match result:
        case JobReport():
            return _report(result)
        case JobSummary():
            return _summary(result)
        case JobPage():
            return _page("job", result.jobs, result.total, result.offset)
        case HistoryPage():
            page = _page("generation", result.generations, result.total, result.offset, at_least=result.at_least)
            return f"{page}\n\n{result.note}" if result.note else page
        case HistoryImport():
            return "\n".join([result.message, *result.unusable])
        case JobsNow():
            return "\n".join(f"{job.job_id}: {job.state}" for job in result.jobs)
        case Forgotten():
            removed = [f"Removed: {path}" for path in result.files_removed]
            return "\n".join([result.message, *removed, *(f"Kept: {why}" for why in result.kept)])
        case ImagesPage():
            return _images(result)
        case ImageMetadata():
            return _metadata(result)
        case SpendingReport():
            return _spending(result)
        case ModelList():
            return _models(result)
        case Status():
            return _status(result)
        case Stopping():
            return result.message
        case Approval():
            return f"{result.question} {'Approved.' if result.approved else 'Not approved yet.'}"
        case _:
            raise AssertionError(f"{type(result).__name__} has no text")


def _report(report: JobReport) -> str:
    lines = [report.message]
    for image in report.images:
        kind = f"{image.width}x{image.height} {image.format}" if image.width else image.format
        where = image.path or ("(not in its place)" if report.error_code == "not_saved" else "(file name forgotten)")
        lines.append(f"{where}  ({kind}, {image.size_bytes:,} bytes)")
        lines.append(f"  sha256 {image.sha256}, UUID {image.uuid}, {image.resource}")
        if image.sidecar:
            lines.append(f"  metadata beside it: {image.sidecar}")
    lines += [f"Not found: {path}" for path in report.missing_files]
    lines += [f"Note: {warning}" for warning in report.warnings]
    lines += ["", *_facts(report)]
    lines += [
        f"  {line.kind}: {line.tokens:,} tokens, {pricing.show(MicroUSD(line.micro_usd))}" for line in report.cost.breakdown
    ]
    if report.usage is not None:
        usage = report.usage
        lines.append(f"Tokens: {usage.input_tokens:,} in, {usage.output_tokens:,} out, {usage.total_tokens:,} in all")
    used = (report.model, report.quality, report.size, report.output_format, f"background {report.background}")
    lines.append("Parameters: " + " | ".join(used))
    lines += [f"Source: {source.name}  ({source.width}x{source.height} {source.format})" for source in report.sources]
    if report.retry_of is not None:
        lines.append(f"Draws again: job {report.retry_of}")
    if report.state != "completed" and report.billed != "no":
        lines.append(f"Billed: {report.billed}")
    if report.prompt is not None:
        lines += ["", f"Prompt: {report.prompt}"]
    return "\n".join(lines)


def _facts(job: JobSummary) -> list[str]:
    return [
        f"History ID: {job.job_id}",
        f"State: {job.state}",
        f"Tool: {job.tool}",
        f"Created: {job.created_at}" + (f" (imported from {job.imported})" if job.imported else ""),
        f"Cost: {job.cost.text}",
    ]


def _summary(job: JobSummary) -> str:
    lines = _facts(job)
    if job.path:
        lines.append(f"Output: {job.path}" + (f" (+{job.image_count - 1} more)" if job.image_count > 1 else ""))
    if job.error:
        lines.append(f"Error: {job.error_code}: {job.error}")
    lines.append(f"Prompt: {job.prompt or '(forgotten)'}")
    return "\n".join(lines)


def _page(noun: str, jobs: tuple[JobSummary, ...], total: int, offset: int, *, at_least: bool = False) -> str:
    if not jobs:
        return f"No {noun}s found." if total == 0 else f"No {noun}s beyond number {total}."
    last = offset + len(jobs)
    head = f"{noun}s {offset + 1}-{last} of {'at least ' if at_least else ''}{total}".capitalize()
    if last < total or at_least:
        head += f"; use offset={last} to see the next ones"
    return "\n\n".join([head + ":", *(_summary(job) for job in jobs)])


def _images(page: ImagesPage) -> str:
    if not page.images:
        return f"No pictures in {page.directory}." if page.total == 0 else f"No pictures beyond number {page.total}."
    last = page.offset + len(page.images)
    head = f"Pictures {page.offset + 1}-{last} of {page.total} in {page.directory}"
    if last < page.total:
        head += f"; use offset={last} to see the next ones"
    return "\n".join(
        [head + ":", *(harmless(f"{image.path}  ({image.size_bytes:,} bytes, {image.modified_at})") for image in page.images)]
    )


def _metadata(found: ImageMetadata) -> str:
    lines = [
        found.message,
        f"{found.path}  ({found.width}x{found.height} {found.format}, {found.size_bytes:,} bytes)",
        f"sha256 {found.sha256}",
        f"Integrity: {found.integrity}",
    ]
    if found.content_credentials:
        lines.append("The file carries content credentials (C2PA).")
    lines += [harmless(f"{key}: {value}") for key, value in found.metadata.items()]
    if found.history is not None:
        lines += ["", "In the history:", *_facts(found.history)]
    return "\n".join(lines)


def _spending(report: SpendingReport) -> str:
    lines = [f"Spent from {report.since} to {report.until} (UTC), by {report.by}:"]
    lines += [f"{row.name}: {_spent(row)}" for row in report.rows]
    lines.append(f"In all: {_spent(report.total)}")
    if report.reserved_micro_usd:
        lines.append(f"Jobs under way may still cost up to {pricing.show(MicroUSD(report.reserved_micro_usd))}.")
    if report.call_cap_micro_usd is not None:
        lines.append(f"One call may cost up to {pricing.show(MicroUSD(report.call_cap_micro_usd))}.")
    lines += [
        f"Budget of {now.period}: {pricing.show(MicroUSD(now.cap_micro_usd))}, {pricing.show(MicroUSD(now.left_micro_usd))} left "
        f"until {now.resets_at}"
        for now in report.budgets
    ]
    if report.unresolved_total:
        told = "may have been billed; the command imaged jobs resolve records what the bill says:"
        lines += ["", f"{report.unresolved_total} jobs {told}"]
        lines += [f"{job.job_id}  {job.created_at}  {job.model}  {job.cost.text}" for job in report.unresolved]
    return "\n".join(harmless(line) for line in lines)


def _spent(row: Spent) -> str:
    told = [pricing.show(MicroUSD(row.settled_micro_usd)), f"{row.images} pictures"]
    if row.estimated_high_micro_usd:
        low, high = MicroUSD(row.estimated_low_micro_usd), MicroUSD(row.estimated_high_micro_usd)
        told.append(f"estimated {pricing.show(low)} to {pricing.show(high)}")
    if row.possibly_billed_micro_usd:
        told.append(f"possibly billed besides: up to {pricing.show(MicroUSD(row.possibly_billed_micro_usd))}")
    if row.unpriced:
        told.append(f"{row.unpriced} of unknown price")
    return ", ".join(told)


def _models(found: ModelList) -> str:
    head = f"Models as of {found.as_of}, prices as of {found.price_as_of}; drawn with by default: {found.default}"
    return "\n\n".join([head, *(_model(model) for model in found.models)])


def _model(model: ModelFacts) -> str:
    gone = {"current": "", "retiring": f" (until {model.gone_from})", "retired": f" (no longer answers since {model.gone_from})"}
    replacement = f"; in its place: {model.replacement}" if model.replacement else ""
    sizes = ", ".join(model.sizes) + (" and any other within the limits" if model.any_size else "")
    lines = [f"{model.name}{gone[model.status]}{replacement}", f"  A picture: {model.price}", f"  Sizes: {sizes or 'unknown'}"]
    lines += [f"  Qualities: {', '.join(model.qualities) or 'none'}; formats: {', '.join(model.formats)}"]
    lines += [f"  {name}: {note}" for name, note in model.notes.items()]
    return "\n".join(lines)


def _status(status: Status) -> str:
    lines = [
        f"imaged {status.software}, process {status.pid}, up since {status.started_at}",
        f"Home: {status.home}",
        f"Jobs: {status.jobs_running} running, {status.jobs_pending} waiting; sessions: {status.sessions}",
        f"Log: position {status.log_position}, head {status.head_hash}",
    ]
    lines += [f"The key {pause.key} waits until {pause.until}: {pause.reason}" for pause in status.waiting_keys]
    if status.log_full:
        lines.append("The disk of the event log is full: no new picture is started until there is room.")
    if status.index_stale:
        lines.append("The index could not be kept up; it is made anew at the next start.")
    return "\n".join(lines)
