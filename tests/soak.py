"""A daemon's hard week in minutes: eight clients that never rest, an API with bad days, and kills without warning.

.venv/bin/python -m tests.soak [--minutes 20] [--seed 1] [--home FOLDER]

Half of the clients speak MCP over stdio, and each starts a daemon when none is there, as clients do; half speak the control
API. All come back when one dies. At the end `tests.soak_audit` holds everything that was promised against what is there. The
status is 1 if a promise was broken. The same seed asks and faults alike; when what happens is the machine's.
"""

import argparse
import contextlib
import os
import random
import signal
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from daemon import bridge, client, client_endings
from daemon.config import Places
from daemon.control import SOCKET_NAME
from daemon.errors import NotRunning
from tests.program import Stdio, environment, wait_until
from tests.soak_audit import Told, audit
from tests.standin import Behaviour, Request, StandIn, draw
from tests.test_faults import half, html, reset, says, with_data
from tests.test_streaming import streams

KEY = "sk-soak-canary-0123456789abcdef"
CLIENTS = 8
REST_SECONDS = 0.3  # between two questions of one client, on the average
LIFE_SECONDS = (5.0, 20.0)  # of a daemon, before it is killed
WORDS = ["fox", "snow", "逆光", "猫", "harbour", "lamp", "朝", "bird", "Straße", "paper", "moss"]

Arguments = dict[str, object]


def is_streamed(request: Request) -> bool:
    return request.headers["content-type"] == "application/json" and bool(request.json.get("stream"))


def draws(request: Request) -> None:
    if is_streamed(request):
        streams(*range(request.json["partial_images"] + request.json["n"]))(request)
    else:
        draw(request)


def slowly(request: Request) -> None:
    time.sleep(2.0)
    draws(request)


def garbles(request: Request) -> None:
    if is_streamed(request):
        streams(0)(request)
    else:
        with_data("!!!!")(request)


BAD_DAYS: dict[str, tuple[int, Behaviour]] = {
    "draws": (60, draws),
    "slowly": (6, slowly),
    "429": (5, says(429, "rate_limit_exceeded", "Limit 5. Please try again in 50ms.")),
    "429 with a header": (3, says(429, "rate_limit_exceeded", retry_after="0")),
    "500": (5, says(500, "server_error", retry_after="0")),
    "503": (3, says(503, "server_is_overloaded", retry_after="0")),
    "502 page": (3, html(502)),
    "cut body": (4, half),
    "reset": (4, reset),
    "garbled": (2, garbles),
    "moderation": (4, says(400, "moderation_blocked")),
    "401": (1, says(401, "invalid_api_key", f"Incorrect API key provided: {KEY}")),
}


class Weather:
    """Which of its days the API has; counted."""

    def __init__(self, seed: int) -> None:
        self.seen: Counter[str] = Counter()
        self._chance = random.Random(f"weather {seed}")
        self._lock = threading.Lock()

    def __call__(self, request: Request) -> None:
        with self._lock:
            name = self._chance.choices(list(BAD_DAYS), [weight for weight, _ in BAD_DAYS.values()])[0]
            self.seen[name] += 1
        BAD_DAYS[name][1](request)


class Client:
    """One that asks and asks. What it was told is noted in `told`, which all of them share."""

    def __init__(self, number: int, seed: int, settings: Mapping[str, str], told: Told) -> None:
        self.number = number
        self.settings = settings
        self.counted: Counter[str] = Counter()
        self.thread = threading.Thread(target=self._live, name=f"client {number}")
        self._told = told
        self._chance = random.Random(f"client {number} {seed}")
        self._over = threading.Event()
        self._orders = 0

    def stop(self) -> None:
        self._over.set()

    def _live(self) -> None:
        while not self._over.is_set():
            try:
                if self.number % 2:
                    self._speak_mcp()
                else:
                    self._ask_control()
            except (NotRunning, bridge.Trouble, OSError, AssertionError) as exc:  # the daemon died; as a client would: again
                self.counted[f"begun again ({type(exc).__name__})"] += 1
                self._over.wait(0.2)

    def _ask_control(self) -> None:
        home = Path(self.settings["IMAGED_HOME"])
        with client.connected(Places(home), self.settings, start=False) as connection:
            self._go_on(lambda tool, arguments: connection.ask(tool, **arguments))

    def _speak_mcp(self) -> None:
        with Stdio(self.settings) as stdio:
            stdio.initialize()

            def ask(tool: str, arguments: Arguments) -> dict[str, Any]:
                answer = stdio.answer(stdio.request("tools/call", {"name": tool, "arguments": arguments}))
                if "error" in answer:
                    return {"refused": answer["error"]}
                return {"result": answer["result"].get("structuredContent", {})}

            self._go_on(ask)

    def _go_on(self, ask: Callable[[str, Arguments], dict[str, Any]]) -> None:
        while not self._over.wait(self._chance.expovariate(1 / REST_SECONDS)):
            tool, arguments = self._wish()
            answer = ask(tool, arguments)
            self.counted[tool + (" refused" if "refused" in answer else "")] += 1
            self._told.hear(tool, arguments, answer.get("result", {}))

    def _wish(self) -> tuple[str, Arguments]:
        known = self._told.some_job(self._chance)
        kind = self._chance.choices(
            ["draw", "edit", "list", "search", "jobs", "wait", "cancel", "retry", "forget", "spending"],
            [40, 6, 8, 8, 8, 10, 5, 6, 3, 6],
        )[0]
        match kind:
            case "draw" | "edit":
                return self._order(known if kind == "edit" else None)
            case "list":
                return "list_history", {"limit": 20}
            case "search":
                return "list_history", {"query": self._chance.choice(WORDS), "limit": 5}
            case "jobs":
                return "list_jobs", {"limit": 20}
            case "spending":
                return "get_spending", {}
            case _ if known is None:
                return "list_jobs", {}
            case "wait":
                return "wait_for_job", {"job_id": known, "wait_seconds": 2}
            case _:
                tool = {"cancel": "cancel_job", "retry": "retry_job", "forget": "forget"}[kind]
                return tool, {"uuid" if kind == "forget" else "job_id": known}

    def _order(self, source: str | None) -> tuple[str, Arguments]:
        self._orders += 1
        name = f"{self.number}-{self._orders}"
        arguments: Arguments = {
            "prompt": f"{' '.join(self._chance.choices(WORDS, k=4))} {name}",
            "quality": "low",
            "size": self._chance.choice(["1024x1024", "1024x640"]),
            "output_path": f"{name}.png",
        }
        if self._chance.random() < 0.3:
            number = self._chance.randrange(max(1, self._orders - 3), self._orders + 1)
            arguments = {
                "prompt": f"keyed {self.number}-{number}",
                "idempotency_key": f"key {self.number}-{number}",
                "size": "1024x640",
            }
        elif self._chance.random() < 0.2 and source is None:
            arguments["partial_images"] = 2
        if source is not None:
            return "edit_image", {**arguments, "reference_images": [source]}
        return "generate_image", arguments


class Reaper:
    """Ends one daemon after the other: mostly by kill -9, sometimes as a service does."""

    def __init__(self, seed: int, home: Path) -> None:
        self.counted: Counter[str] = Counter()
        self.over = threading.Event()
        self.thread = threading.Thread(target=self._reap, name="reaper")
        self._chance = random.Random(f"reaper {seed}")
        self._home = home

    def _reap(self) -> None:
        while not self.over.wait(self._chance.uniform(*LIFE_SECONDS)):
            pid = daemon_of(self._home)
            if pid:
                number = signal.SIGTERM if self._chance.random() < 0.2 else signal.SIGKILL
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, number)
                    self.counted[number.name] += 1


def daemon_of(home: Path) -> int:
    """Its process number; 0 if none listens."""
    try:
        connection = bridge.try_to_connect(str(home), SOCKET_NAME)
    except (OSError, bridge.Trouble):
        return 0
    if connection is None:
        return 0
    with contextlib.closing(connection):
        return client_endings.pid_behind(connection)


def soak(home: Path, *, minutes: float, seed: int) -> int:
    """The exit status."""
    weather, told = Weather(seed), Told()
    with StandIn(otherwise=weather) as api:
        settings = environment(
            home, IMAGED_BACKEND="openai", OPENAI_API_KEY=KEY, OPENAI_BASE_URL=api.url, IMAGED_SYNC_WAIT_SECONDS="5"
        )
        places = Places(Path(settings["IMAGED_HOME"]))
        clients = [Client(number, seed, settings, told) for number in range(CLIENTS)]
        reaper = Reaper(seed, places.home)
        for one in (*clients, reaper):
            one.thread.start()
        ends_at = time.monotonic() + minutes * 60
        while time.monotonic() < ends_at and all(one.thread.is_alive() for one in clients):
            time.sleep(1)
        reaper.over.set()
        for some in clients:
            some.stop()
        for each in (reaper, *clients):
            each.thread.join()
        with client.connected(places, settings) as connection:
            wait_until(lambda: nothing_runs(connection), "the last jobs to end")
            connection.ask("stop_daemon")
        wait_until(lambda: daemon_of(places.home) == 0, "the daemon to end")
        asked = sum((one.counted for one in clients), Counter[str]())
        print(f"seed {seed}, {minutes:g} minutes")
        for title, counted in (("asked", asked), ("the API", weather.seen), ("ends of daemons", reaper.counted)):
            print(f"{title}: " + ", ".join(f"{count} {name}" for name, count in counted.most_common()))
        broken = audit(home, places, told, api.requests, KEY)
    for sentence in broken:
        print(f"BROKEN: {sentence}")
    print(f"{len(broken)} promises broken" if broken else "every promise was kept")
    return 1 if broken else 0


def nothing_runs(connection: client.Connection) -> bool:
    return not any(connection.ask("list_jobs", status=state)["result"]["total"] for state in ("pending", "running"))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--minutes", type=float, default=20)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--home", type=Path, help="an empty folder, which is kept; left out, one that goes")
    wanted = parser.parse_args()
    if wanted.home is not None:
        sys.exit(soak(wanted.home, minutes=wanted.minutes, seed=wanted.seed))
    with tempfile.TemporaryDirectory() as folder:
        sys.exit(soak(Path(folder), minutes=wanted.minutes, seed=wanted.seed))
