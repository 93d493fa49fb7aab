"""What others notice while fifty pictures land at once: `ping` over MCP, `get_status` over the control API, and the loop itself.

.venv/bin/python -m tests.benchmarks.load [--pictures 50] [--rounds 3]

The API is a process of its own that holds every request until all have come, and then answers them all. The baseline of a ratio
is the same question to the same daemon while nothing lands. A step is what one task does before it lets others go on.
"""

import argparse
import multiprocessing
import os
import platform
import tempfile
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from multiprocessing.connection import Connection
from pathlib import Path
from statistics import median, quantiles

from daemon import client
from tests.benchmarks.draw import SMALL, reply_of
from tests.program import Program, Stdio
from tests.steps import LONG_MS, long_steps, longest_ms, watched

PING_AIM_MS = 100
CALM_QUESTIONS = 200
HELD_SECONDS_MAX = 300.0


def serve(said: Connection, pictures: int) -> None:
    body = reply_of(SMALL, 1)
    all_here = threading.Barrier(pictures)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["content-length"]))
            all_here.wait(HELD_SECONDS_MAX)
            self.send_response(200)
            self.send_header("content-type", "application/json")
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:
            """Quiet."""

    class Server(ThreadingHTTPServer):
        request_queue_size = pictures

    server = Server(("127.0.0.1", 0), Handler)
    said.send(server.server_port)
    server.serve_forever()


def asked(ask: Callable[[], object], goes_on: Callable[[int], bool]) -> list[float]:
    """Milliseconds of each answer, one question after another."""
    taken: list[float] = []
    while goes_on(len(taken)):
        started = time.perf_counter()
        ask()
        taken.append((time.perf_counter() - started) * 1000)
    return taken


def landing(program: Program, pictures: int, number: int) -> list[Future[None]]:
    """So many orders, each of which waits for its picture."""

    def one(which: int) -> None:
        prompt = f"round {number}, picture {which}"
        told = client.ask(
            program.places, "generate_image", {"prompt": prompt, "size": "1024x1024", "quality": "low"}, program.environment
        )
        assert told["result"]["state"] == "completed", told

    pool = ThreadPoolExecutor(pictures)
    return [pool.submit(one, which) for which in range(pictures)]


def measured(program: Program, pictures: int, rounds: int) -> Mapping[str, tuple[list[float], list[float]]]:
    """Of each question: while nothing lands, and while all do."""

    def until_calm(count: int) -> bool:
        return count < CALM_QUESTIONS

    with (
        Stdio(program.environment) as stdio,
        client.connected(program.places, program.environment, start=False) as connection,
        ThreadPoolExecutor(2) as askers,
    ):
        stdio.initialize()
        questions: dict[str, Callable[[], object]] = {
            "ping, MCP": lambda: stdio.answer(stdio.request("ping")),
            "get_status, control API": lambda: connection.ask("get_status"),
        }
        calm = {name: asked(ask, until_calm) for name, ask in questions.items()}
        busy: dict[str, list[float]] = {name: [] for name in questions}
        for number in range(rounds):
            orders = landing(program, pictures, number)

            def until_landed(_: int, orders: list[Future[None]] = orders) -> bool:
                return not all(order.done() for order in orders)

            asking = {name: askers.submit(asked, ask, until_landed) for name, ask in questions.items()}
            for name, answers in asking.items():
                busy[name] += answers.result()
            for order in orders:
                order.result()
    return {name: (calm[name], busy[name]) for name in questions}


def main(pictures: int, rounds: int, folder: Path) -> None:
    ours, theirs = multiprocessing.get_context("spawn").Pipe()
    api = multiprocessing.get_context("spawn").Process(target=serve, args=(theirs, pictures), daemon=True)
    api.start()
    settings = {
        "IMAGED_BACKEND": "openai",
        "OPENAI_API_KEY": "sk-benchmark",
        "OPENAI_BASE_URL": f"http://127.0.0.1:{ours.recv()}/v1",
        "IMAGED_MAX_CONCURRENT": str(pictures),
        "IMAGED_SYNC_WAIT_SECONDS": "300",
    }
    steps = folder / "steps"
    program = Program(folder, watched(steps), **settings).start().ready()
    try:
        results = measured(program, pictures, rounds)
    finally:
        program.end()
        api.terminate()
        api.join()
    print(
        f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}, {rounds} times {pictures} pictures\n"
    )
    print(
        "| while they land | answers | p50, ms | p99, ms | worst, ms | p50 / calm | aim, worst |\n|---|---|---|---|---|---|---|"
    )
    for name, (calm, busy) in results.items():
        aim = PING_AIM_MS if name.startswith("ping") else ""
        p99 = quantiles(busy, n=100)[98]
        ratio = median(busy) / median(calm)
        print(f"| {name} | {len(busy)} | {median(busy):.1f} | {p99:.1f} | {max(busy):.1f} | {ratio:.1f} | {aim} |")
    print(f"\nThe longest step of the daemon's loop took {longest_ms(steps):.1f} ms; aim: {LONG_MS:.0f}.")
    for line in long_steps(steps):
        print(line)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--pictures", type=int, default=50)
    parser.add_argument("--rounds", type=int, default=3)
    wanted = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        main(wanted.pictures, wanted.rounds, Path(name))
