"""The readable twin of every result: plain lines, the most wanted first."""

from daemon.results import HistoryPage, JobPage, JobReport, JobSummary, Result, Status, Stopping


def text(result: Result) -> str:
    match result:
        case JobReport():
            return _report(result)
        case JobSummary():
            return _summary(result)
        case JobPage():
            return _page("job", result.jobs, result.total, result.offset)
        case HistoryPage():
            return _page("generation", result.generations, result.total, result.offset)
        case Status():
            return _status(result)
        case Stopping():
            return result.message
        case _:
            raise AssertionError(f"{type(result).__name__} has no text")


def _report(report: JobReport) -> str:
    lines = [report.message]
    lines += [
        f"{image.path or '(file name forgotten)'}  ({image.width}x{image.height} {image.format}, {image.size_bytes:,} bytes)"
        for image in report.images
    ]
    lines += [f"Note: {warning}" for warning in report.warnings]
    lines += ["", *_facts(report)]
    if report.usage is not None:
        usage = report.usage
        lines.append(f"Tokens: {usage.input_tokens:,} in, {usage.output_tokens:,} out, {usage.total_tokens:,} in all")
    lines.append(f"Parameters: {report.model} | {report.quality} | {report.size} | {report.output_format}")
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
        f"Created: {job.created_at}",
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


def _page(noun: str, jobs: tuple[JobSummary, ...], total: int, offset: int) -> str:
    if not jobs:
        return f"No {noun}s found." if total == 0 else f"No {noun}s beyond number {total}."
    last = offset + len(jobs)
    head = f"{noun}s {offset + 1}-{last} of {total}".capitalize()
    if last < total:
        head += f"; use offset={last} to see the next ones"
    return "\n\n".join([head + ":", *(_summary(job) for job in jobs)])


def _status(status: Status) -> str:
    lines = [
        f"imaged {status.software}, process {status.pid}, up since {status.started_at}",
        f"Home: {status.home}",
        f"Jobs: {status.jobs_running} running, {status.jobs_pending} waiting; sessions: {status.sessions}",
        f"Log: position {status.log_position}, head {status.head_hash}",
    ]
    if status.log_full:
        lines.append("The disk of the event log is full: no new picture is started until there is room.")
    if status.index_stale:
        lines.append("The index could not be kept up; it is made anew at the next start.")
    return "\n".join(lines)
