"""`imaged spending` and `models`: what was spent, and what drawing costs."""

import argparse
import sys
from typing import TYPE_CHECKING

from daemon import cli_exits as exits
from daemon import cli_times as times
from daemon.cli_options import add_command, add_json, completed_by, offering

if TYPE_CHECKING:
    from daemon.cli_options import Commands
    from daemon.money import ModelFacts, SpendingReport, Spent

BY = ("day", "model", "client", "key")


def spending(asked: argparse.Namespace) -> int:
    """Show what was spent, and what may have been billed besides."""
    from daemon.cli_connection import ask, connected, json_out, read
    from daemon.cli_terminal import Column, table
    from daemon.money import SpendingReport

    wanted = {} if asked.by is None else {"by": asked.by}
    for name in ("since", "until"):
        if (text := getattr(asked, name)) is not None:
            wanted[name] = times.day(f"--{name}", text)
    with connected() as connection:
        report = read(ask(connection, "get_spending", **wanted), SpendingReport)
    if asked.json:
        json_out(report)
        return exits.OK
    titles = ("PICTURES", "SPENT", "ESTIMATED", "PERHAPS BILLED", "UNPRICED")
    columns = [Column(report.by.upper()), *(Column(title, right=True) for title in titles)]
    table(columns, [_cells(row.name, row) for row in report.rows], _cells("total", report.total))
    _say_what_is_open(report)
    return exits.OK


def models(asked: argparse.Namespace) -> int:
    """List the models, what a picture costs, and when they go."""
    from daemon.cli_connection import ask, connected, json_out, read
    from daemon.cli_terminal import Column, say, table
    from daemon.money import ModelList

    with connected() as connection:
        found = read(ask(connection, "list_models"), ModelList)
    if asked.json:
        json_out(found)
        return exits.OK
    columns = [
        Column("MODEL", style="cyan"),
        Column("STATUS"),
        Column("A PICTURE", right=True),
        Column("FORMATS", only_wide=True),
        Column("QUALITIES", elastic=True),
    ]
    table(columns, [_model(model) for model in found.models])
    say(f"{found.default} is drawn with by default; models as of {found.as_of}, prices as of {found.price_as_of}.")
    return exits.OK


def add(commands: "Commands") -> None:
    examples = ("spending", "spending --by model", 'spending --since "last month" --json | jq .total.settled_micro_usd')
    parser = add_command(commands, "spending", spending, *examples)
    completed_by(parser.add_argument("--by", metavar="WHAT", help=f"{', '.join(BY)} (day)"), offering(BY))
    parser.add_argument("--since", metavar="DAY", help="the first UTC day, such as yesterday (the first of this month)")
    parser.add_argument("--until", metavar="DAY", help="the last UTC day (today)")
    add_json(parser)
    add_json(add_command(commands, "models", models, "models", 'models --json | jq -r ".models[].name"'))


def _cells(name: str, row: "Spent") -> list[str]:
    estimated = ""
    if row.estimated_high_micro_usd:
        estimated = f"{_dollars(row.estimated_low_micro_usd)} to {_dollars(row.estimated_high_micro_usd)}"
    perhaps = _dollars(row.possibly_billed_micro_usd) if row.possibly_billed_micro_usd else ""
    return [name, str(row.images), _dollars(row.settled_micro_usd), estimated, perhaps, str(row.unpriced or "")]


def _say_what_is_open(report: "SpendingReport") -> None:
    from daemon.cli_terminal import say

    if report.reserved_micro_usd:
        say(f"jobs under way may still cost up to {_dollars(report.reserved_micro_usd)}.")
    if report.unresolved_total:
        many = (
            "1 job may have been billed"
            if report.unresolved_total == 1
            else f"{report.unresolved_total} jobs may have been billed"
        )
        say(f"{many} without a picture; imaged jobs resolve records what the bill says of them:")
        for job in report.unresolved:
            print(f"{job.job_id}  {times.local(job.created_at)}  {job.model}  {job.cost.text}", file=sys.stderr)  # noqa: T201


def _model(model: "ModelFacts") -> list[str]:
    status = {"current": "current", "retiring": f"until {model.gone_from}", "retired": f"gone {model.gone_from}"}[model.status]
    price = "unknown" if model.low_micro_usd is None else model.price
    return [model.name, status, price, ",".join(model.formats), ",".join(model.qualities)]


def _dollars(micro_usd: int) -> str:
    from eventlog.values import MicroUSD
    from tools import pricing

    return pricing.show(MicroUSD(micro_usd))
