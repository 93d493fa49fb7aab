"""What the shell offers behind Tab. argcomplete is imported only when a shell asks, or wants to know how to.

Rule: quick and silent. Where no daemon runs, or none answers at once, there are no ids to offer and nothing is said.
"""

import argparse
import signal
from collections.abc import Mapping
from typing import TYPE_CHECKING

from daemon import bridge, cli_exits, config
from daemon.cli_options import add_command
from daemon.errors import BadConfiguration, NotRunning

if TYPE_CHECKING:
    from types import FrameType

    from daemon.cli_options import Commands

SHELLS = ("bash", "zsh", "fish")
ASKED_BY_SHELL = "_ARGCOMPLETE"
IDS_MAX = 20
PATIENCE_SECONDS = 1.0  # of somebody who has pressed Tab


def completion(asked: argparse.Namespace) -> int:
    """Print what teaches your shell to complete commands and ids."""
    from argcomplete.shell_integration import shellcode

    print(shellcode(["imaged"], shell="bash" if asked.shell == "zsh" else asked.shell))  # noqa: T201
    return cli_exits.OK


def complete(parser: argparse.ArgumentParser) -> None:
    """Answers the shell and ends the process, if it is a shell that asks."""
    import argcomplete

    argcomplete.autocomplete(parser, always_complete_options=False)


def job_ids(**asked: object) -> dict[str, str]:
    """The newest jobs, each with the beginning of its prompt."""
    from daemon import client

    signal.signal(signal.SIGALRM, _too_late)
    signal.setitimer(signal.ITIMER_REAL, PATIENCE_SECONDS)
    try:
        reply: Mapping[str, object] = client.ask(config.default_places(), "list_jobs", {"limit": IDS_MAX})
    except (NotRunning, BadConfiguration, bridge.Trouble, OSError):
        return {}
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
    return _described(reply.get("result"))


def add(commands: "Commands") -> None:
    parser = add_command(
        commands,
        "completion SHELL",
        completion,
        'completion bash    in ~/.bashrc:  eval "$(imaged completion bash)"',
        'completion zsh     in ~/.zshrc, behind compinit:  eval "$(imaged completion zsh)"',
        "completion fish    once:  imaged completion fish > ~/.config/fish/completions/imaged.fish",
    )
    parser.add_argument("shell", metavar="SHELL", choices=SHELLS, help=", ".join(SHELLS))


def _described(page: object) -> dict[str, str]:
    jobs = page.get("jobs") if isinstance(page, dict) else None
    return {str(job["job_id"]): f"{job['state']}: {job['prompt']}" for job in jobs or ()}


def _too_late(number: int, frame: "FrameType | None") -> None:
    raise TimeoutError
