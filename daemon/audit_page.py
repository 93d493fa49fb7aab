"""The audit as one page: no script, nothing from elsewhere, nothing of what anybody wrote taken for markup.

Rule: a page of a thousand generations opens at once. It is written piece by piece, pictures are decoded when they are
looked at, and what is below the screen is not laid out. It follows the reader's light or dark, and prints on paper.
"""

import base64
from collections.abc import Iterator
from html import escape

import msgspec

from daemon import results
from eventlog.audit import harmless
from eventlog.values import Position


class Generation(msgspec.Struct, frozen=True, kw_only=True):
    """A job as it is exported. `positions` are the commits of its request and of its last change.

    `thumbnails` are JPEG, in the order of its images; empty bytes where there is none.
    """

    report: results.JobReport
    positions: tuple[Position, Position]
    forgotten_at: str | None
    thumbnails: tuple[bytes, ...]


_HEAD = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="referrer" content="no-referrer">
<title>imaged: every generation</title>
<style>
:root { color-scheme: light dark; --line: #8884; --soft: #8882; --quiet: #767676; }
body { font: 15px/1.45 system-ui, sans-serif; margin: 0 auto; max-width: 70rem; padding: 1rem; }
h1 { font-size: 1.4rem; margin: 0; }
header p { color: var(--quiet); margin: .2rem 0 1rem; overflow-wrap: anywhere; }
article { border-top: 1px solid var(--line); content-visibility: auto; contain-intrinsic-size: auto 15rem; display: flex;
  flex-wrap: wrap; gap: 1rem; padding: 1rem 0; }
.pictures { display: flex; flex: 0 0 12rem; flex-wrap: wrap; gap: .4rem; align-content: flex-start; }
.pictures img { background: var(--soft); border-radius: 4px; height: auto; max-width: 12rem; }
.none { background: var(--soft); border-radius: 4px; color: var(--quiet); display: grid; height: 6rem; place-items: center;
  text-align: center; width: 12rem; }
.told { flex: 1 1 24rem; min-width: 0; }
h2 { font-size: 1rem; margin: 0; overflow-wrap: anywhere; }
.state { border: 1px solid currentColor; border-radius: 4px; font-size: .8rem; padding: 0 .35rem; }
.failed, .interrupted { color: #c33; }
.cancelled { color: var(--quiet); }
.prompt { margin: .5rem 0; max-height: 12rem; overflow: auto; overflow-wrap: anywhere; white-space: pre-wrap; }
dl { display: grid; font-size: .85rem; gap: .1rem .8rem; grid-template-columns: max-content 1fr; margin: .4rem 0; }
dt { color: var(--quiet); }
dd { margin: 0; overflow-wrap: anywhere; }
summary { cursor: pointer; font-size: .85rem; }
@media print {
  body { font-size: 10pt; max-width: none; padding: 0; }
  article { break-inside: avoid; content-visibility: visible; }
  .prompt { max-height: none; overflow: visible; }
}
</style>
</head>
<body>
"""


def pieces(rows: Iterator[Generation], total: int, position: Position, head_hash: str) -> Iterator[bytes]:
    yield _HEAD.encode()
    counted = "1 generation" if total == 1 else f"{total:,} generations"
    yield _bytes(
        f"<header><h1>imaged: every generation</h1>\n<p>{counted}, newest first, as of commit {position} with the hash "
        f"{escape(head_hash)}. Times are UTC.</p></header>\n<main>\n"
    )
    for row in rows:
        yield _bytes(_article(row))
    yield b"</main>\n</body>\n</html>\n"


def _article(row: Generation) -> str:
    told = row.report
    prompt = "(forgotten)" if told.prompt is None else told.prompt
    facts = "".join(f"<dt>{escape(name)}</dt><dd>{_text(value)}</dd>" for name, value in _facts(row) if value)
    proof = "".join(f"<dt>{escape(name)}</dt><dd>{_text(value)}</dd>" for name, value in _proof(row) if value)
    return (
        f'<article id="{_text(told.job_id)}">\n<div class="pictures">{_pictures(row)}</div>\n<div class="told">\n'
        f'<h2>{_text(told.created_at)} <span class="state {told.state}">{told.state}</span></h2>\n'
        f'<p class="prompt">{_text(prompt)}</p>\n<dl>{facts}</dl>\n'
        f"<details><summary>Digests and chain</summary><dl>{proof}</dl></details>\n</div>\n</article>\n"
    )


def _pictures(row: Generation) -> str:
    shown = []
    for number, thumbnail in enumerate(row.thumbnails, start=1):
        if thumbnail:
            data = base64.b64encode(thumbnail).decode()
            shown.append(f'<img loading="lazy" decoding="async" alt="picture {number}" src="data:image/jpeg;base64,{data}">')
        else:
            shown.append('<span class="none">no preview</span>')
    return "".join(shown) or '<span class="none">no picture</span>'


def _facts(row: Generation) -> Iterator[tuple[str, str]]:
    told, usage = row.report, row.report.usage
    yield "Tool", told.tool
    yield "Model", told.model
    yield "Parameters", f"{told.size}, {told.quality}, {told.output_format}, background {told.background}"
    yield "Asked by", told.client + (f" (imported from {told.imported})" if told.imported else "")
    yield "Cost", told.cost.text + (f"; billed: {told.billed}" if told.state != "completed" and told.billed != "no" else "")
    if usage is not None:
        yield "Tokens", f"{usage.input_tokens:,} in, {usage.output_tokens:,} out, {usage.total_tokens:,} in all"
    for source in told.sources:
        yield "Source", f"{source.name} ({source.width}x{source.height} {source.format})"
    for image in told.images:
        yield "File", image.path or "(forgotten)"
    yield "Error", f"{told.error_code}: {told.error}" if told.error_code else ""
    yield "Forgotten", row.forgotten_at or ""


def _proof(row: Generation) -> Iterator[tuple[str, str]]:
    told = row.report
    yield "UUID", told.job_id
    yield "Commits", f"requested in {row.positions[0]}, last changed in {row.positions[1]}"
    yield "Key", told.key_fingerprint
    yield "Attempts", f"{told.attempts}"
    yield "X-Client-Request-Id", told.client_request_id
    yield "OpenAI's request id", told.openai_request_id
    for image in told.images:
        yield "File SHA-256", image.sha256
        yield "As received", image.original_sha256
    for source in told.sources:
        yield "Source SHA-256", source.sha256


def _text(text: str) -> str:
    """Nothing of it is markup, and what would act instead of being seen is shown as its code point."""
    return escape("\n".join(harmless(line) for line in text.splitlines()))


def _bytes(text: str) -> bytes:
    return text.encode("utf-8", "replace")
