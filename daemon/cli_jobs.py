"""`imaged jobs`: what is being drawn and what became of it.

Rule: what is said of one job is said of several, too, each with its own end: stdout has a line for each, and the exit
status is what they have in common, or that they have not.
"""

import argparse
import sys
from typing import TYPE_CHECKING, get_args

from daemon import cli_exits as exits
from daemon.arguments import State
from daemon.cli_completion import job_ids
from daemon.cli_draw import add_patience
from daemon.cli_options import (
    EXAMPLE_ID,
    add_command,
    add_group,
    add_json,
    add_page,
    completed_by,
    given,
    offering,
    seconds,
)

if TYPE_CHECKING:
    from daemon.cli_options import Commands, Parser

STATES = get_args(State)
EXAMPLES = ("jobs list --state running", f"jobs wait {EXAMPLE_ID}", f"jobs cancel {EXAMPLE_ID}", "jobs retry --help")


def list_jobs(asked: argparse.Namespace) -> int:
    """List jobs of every state, newest first."""
    from daemon import cli_pages
    from daemon.cli_connection import ask, connected, json_out, read
    from daemon.results import JobPage

    names = {"state": "status", "tool": "tool_name", "limit": "limit", "offset": "offset"}
    with connected() as connection:
        page = read(ask(connection, "list_jobs", **given(asked, names)), JobPage)
    if asked.json:
        json_out(page)
        return exits.OK
    cli_pages.tell("jobs", page.jobs, cli_pages.Found(page.total, page.offset), limited=asked.limit is not None)
    return exits.OK


def show(asked: argparse.Namespace) -> int:
    """Show where one job stands and all that is known of it."""
    from daemon.cli_connection import tell

    tell("check_job_status", as_json=asked.json, job_id=asked.job)
    return exits.OK


def wait(asked: argparse.Namespace) -> int:
    """Wait for jobs, and print the paths of their pictures."""
    from daemon import cli_waiting
    from daemon.cli_connection import connected, json_out

    with connected() as connection:
        jobs = cli_waiting.find(connection, asked.jobs)
        with cli_waiting.coming_back(jobs):
            jobs = cli_waiting.until_over(connection, jobs, asked.wait)
        if asked.json:
            json_out({"jobs": jobs})
        else:
            for job in jobs:
                cli_waiting.tell(connection, job, inline=asked.inline)
    return cli_waiting.status_of(jobs)


def cancel(asked: argparse.Namespace) -> int:
    """Cancel jobs; what is being drawn may still be billed."""
    from daemon.cli_connection import Declined, ask, connected, json_out, read
    from daemon.cli_terminal import row_out, say
    from daemon.results import JobReport

    told: list[JobReport | dict[str, object]] = []
    statuses = []
    with connected() as connection:
        for job_id in asked.jobs:
            try:
                told.append(read(ask(connection, "cancel_job", job_id=job_id), JobReport))
            except Declined as declined:
                if len(asked.jobs) == 1:
                    raise
                say(str(declined))
                told.append({"job_id": job_id, "error": {"code": declined.code, "message": str(declined)}})
                statuses.append(exits.of_refusal(declined.code))
                continue
            statuses.append(exits.OK)
    if asked.json:
        json_out({"jobs": told})
        return exits.of_all(statuses)
    for job in told:  # not before all are cancelled: whoever reads this may have gone
        if isinstance(job, JobReport):
            row_out((job.job_id, job.state, job.message))
    return exits.of_all(statuses)


def retry(asked: argparse.Namespace) -> int:
    """Draw what came to nothing again, and perhaps pay it twice."""
    from daemon import cli_waiting
    from daemon.cli_connection import Named, connected
    from daemon.cli_draw import OPTIONS, output

    order = {"job_id": asked.job}
    if asked.output is not None:
        order["output_path"] = output(asked.output)
    with connected(named=Named(order.get("output_path"))) as connection:
        return cli_waiting.order(connection, "retry_job", order, OPTIONS, cli_waiting.manners(asked))


def resolve(asked: argparse.Namespace) -> int:
    """Record what the bill says of a job whose answer was lost."""
    from daemon.cli_connection import tell

    amount = {} if asked.amount is None else {"amount_usd": asked.amount}
    tell("resolve_job", as_json=asked.json, job_id=asked.job, outcome=asked.outcome, **amount)
    return exits.OK


def approve(asked: argparse.Namespace) -> int:
    """Say yes to a picture above IMAGED_CONFIRM_USD."""
    from daemon.cli_connection import ask, connected
    from daemon.cli_terminal import out, say
    from daemon.errors import Refused

    if not (sys.stdin.isatty() and sys.stderr.isatty()):
        raise Refused("Only a person at a terminal can approve an order; run this command in one.", code="bad_arguments")
    with connected() as connection:
        out(str(ask(connection, "approve_order", code=asked.code)["result"]["question"]))
        say("Draw it? Type yes:")
        if sys.stdin.readline().strip().lower() != "yes":
            say("Not approved; nothing is drawn.")
            return exits.FAILED
        ask(connection, "approve_order", code=asked.code, approve=True)
    say("Approved: ask for the same picture again now, and it is drawn.")
    return exits.OK


def add_approve(commands: "Commands") -> None:
    parser = add_command(commands, "approve CODE", approve, "approve 3f9c2a7151d0b8e6")
    parser.add_argument("code", metavar="CODE", help="what the refusal named")


def add(commands: "Commands") -> None:
    inner = add_group(commands, "jobs", "List jobs; wait for, cancel, retry or resolve them.", *EXAMPLES)
    _add_list(inner)
    showing = add_command(inner, "show ID", show, f"jobs show {EXAMPLE_ID}", f"jobs show {EXAMPLE_ID} --json | jq .cost")
    waiting = add_command(inner, "wait ID …", wait, f"jobs wait {EXAMPLE_ID}", f"jobs wait {EXAMPLE_ID} --wait 60 --json")
    waiting.add_argument("--wait", type=seconds, metavar="SECONDS", help="how long; then exit with 124 (until all are over)")
    waiting.add_argument("--no-inline", dest="inline", action="store_false", help="never show a picture in the terminal")
    pending = "jobs cancel $(imaged jobs list --state pending --limit 100 | cut -f1)"
    cancelling = add_command(inner, "cancel ID …", cancel, f"jobs cancel {EXAMPLE_ID}", pending)
    for parser in (waiting, cancelling):
        completed_by(parser.add_argument("jobs", metavar="ID", nargs="+", help="jobs, as `imaged jobs list` shows them"), job_ids)
    retrying = add_command(inner, "retry ID", retry, f"jobs retry {EXAMPLE_ID}", f"jobs retry {EXAMPLE_ID} --no-wait")
    retrying.add_argument("-o", "--output", metavar="PATH", help="another file name for the picture")
    add_patience(retrying)
    resolving = _add_resolve(inner)
    for parser in (showing, retrying, resolving):
        completed_by(parser.add_argument("job", metavar="ID", help="a job, as `imaged jobs list` shows it"), job_ids)
    for parser in (showing, waiting, cancelling, retrying, resolving):
        add_json(parser)


def _add_list(inner: "Commands") -> None:
    examples = ("jobs list", "jobs list --state interrupted", "jobs list --limit 100 --json | jq .total")
    parser = add_command(inner, "list", list_jobs, *examples)
    completed_by(parser.add_argument("--state", metavar="STATE", help=", ".join(STATES)), offering(STATES))
    add_page(parser)
    add_json(parser)


def _add_resolve(inner: "Commands") -> "Parser":
    examples = (f"jobs resolve {EXAMPLE_ID} --not-billed", f"jobs resolve {EXAMPLE_ID} --billed --amount 0.042")
    parser = add_command(inner, "resolve ID --billed|--not-billed", resolve, *examples)
    which = parser.add_mutually_exclusive_group(required=True)
    which.add_argument("--billed", dest="outcome", action="store_const", const="billed", help="the bill has it")
    which.add_argument("--not-billed", dest="outcome", action="store_const", const="not_billed", help="the bill has it not")
    parser.add_argument("--amount", metavar="USD", help="what was billed; left out: the upper estimate counts")
    return parser
