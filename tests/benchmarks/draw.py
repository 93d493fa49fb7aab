"""What a picture costs the daemon from order to file, with an API that takes no time; and its memory for ten large ones.

.venv/bin/python -m tests.benchmarks.draw [--pictures 100]

CPU is the daemon's own, all threads, without the processes that decode pictures. The baseline does with the same reply only what
has to be done: decode base64, SHA-256, write, sync. The API is a process of its own that answers with bytes prepared before.
"""

import argparse
import base64
import hashlib
import io
import json
import multiprocessing
import os
import platform
import resource
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from multiprocessing.connection import Connection
from pathlib import Path

from PIL import Image

from tests.benchmarks.query import cpu_ms
from tests.program import Program

USAGE = {"input_tokens": 10, "output_tokens": 1000, "total_tokens": 1010}
SMALL, LARGE = (1024, 1024), (3840, 2160)
MEGABYTES_AIM, CPU_MS_AIM = 400, 30


def reply_of(size: tuple[int, int], count: int) -> bytes:
    """Noise-like enough that a picture has the bytes of a real one: 1.5 MB for a small, some 15 MB for a large."""
    pictures = []
    for number in range(count):
        out = io.BytesIO()
        noise = Image.effect_noise((size[0] // 2, size[1] // 2), 40 + number).resize(size, Image.Resampling.BILINEAR)
        Image.merge("RGB", (noise, noise.transpose(Image.Transpose.FLIP_LEFT_RIGHT), noise)).save(out, "PNG", compress_level=1)
        pictures.append({"b64_json": base64.b64encode(out.getvalue()).decode()})
    return json.dumps({"created": 1, "data": pictures, "usage": USAGE}).encode()


def serve(said: Connection) -> None:
    replies = {f"{SMALL[0]}x{SMALL[1]}": reply_of(SMALL, 1), f"{LARGE[0]}x{LARGE[1]}": reply_of(LARGE, 10)}

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            asked = json.loads(self.rfile.read(int(self.headers["content-length"])))
            body = replies[asked["size"]]
            self.send_response(200)
            self.send_header("content-type", "application/json")
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:
            """Quiet."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    said.send((server.server_port, {size: len(body) for size, body in replies.items()}))
    server.serve_forever()


def drawn(program: Program, pictures: int, at_once: int) -> tuple[float, float]:
    """CPU of the daemon and wall, in milliseconds for each picture."""

    def one(number: int) -> None:
        prompt = f"{at_once} at once, number {number}"
        told = program.ask("generate_image", prompt=prompt, size="1024x1024", quality="low", output_path=f"{prompt}.png")
        assert told["result"]["state"] == "completed", told

    one(-1)
    before, started = cpu_ms(program.pid), time.perf_counter()
    with ThreadPoolExecutor(at_once) as pool:
        list(pool.map(one, range(pictures)))
    return (cpu_ms(program.pid) - before) / pictures, (time.perf_counter() - started) * 1000 / pictures


def baseline(folder: Path, pictures: int) -> tuple[float, float]:
    body = reply_of(SMALL, 1)
    before, started = time.process_time(), time.perf_counter()
    for number in range(pictures):
        data = base64.b64decode(json.loads(body)["data"][0]["b64_json"])
        (folder / hashlib.sha256(data).hexdigest()).touch()
        with (folder / f"{number}.png").open("wb") as file:
            file.write(data)
            os.fsync(file.fileno())
    return (time.process_time() - before) * 1000 / pictures, (time.perf_counter() - started) * 1000 / pictures


def peak_mb(program: Program) -> int:
    status = Path(f"/proc/{program.pid}/status").read_text()
    return int(next(line for line in status.splitlines() if line.startswith("VmHWM")).split()[1]) // 1024


def main(pictures: int, folder: Path) -> None:
    ours, theirs = multiprocessing.get_context("spawn").Pipe()
    api = multiprocessing.get_context("spawn").Process(target=serve, args=(theirs,), daemon=True)
    api.start()
    port, sizes = ours.recv()
    settings = {"IMAGED_BACKEND": "openai", "OPENAI_API_KEY": "sk-benchmark", "OPENAI_BASE_URL": f"http://127.0.0.1:{port}/v1"}
    program = Program(folder, IMAGED_SYNC_WAIT_SECONDS="300", **settings).start().ready()
    try:
        lines = {f"daemon, {at_once} at once": drawn(program, pictures, at_once) for at_once in (1, 4)}
        memory_before = peak_mb(program)
        told = program.ask("generate_image", prompt="ten", size=f"{LARGE[0]}x{LARGE[1]}", quality="low", sample_count=10)
        assert told["result"]["state"] == "completed" and len(told["result"]["images"]) == 10, told
        memory_after = peak_mb(program)
    finally:
        program.end()
        api.terminate()
        api.join()
    bare = baseline(folder, pictures)
    print(
        f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}, {pictures} pictures, "
        f"bytes of the replies: {sizes}\n"
    )
    print("| 1024x1024 png | CPU, ms | wall, ms | CPU / baseline | aim, CPU |\n|---|---|---|---|---|")
    for name, (cpu, wall) in {"baseline": bare, **lines}.items():
        print(f"| {name} | {cpu:.1f} | {wall:.1f} | {cpu / bare[0]:.2f} | {CPU_MS_AIM} |")
    print(
        f"\nTen 4K pictures in one reply: at most {memory_after} MB resident, {memory_before} MB before; aim: {MEGABYTES_AIM} MB."
    )
    print(f"The benchmark itself: {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024} MB.")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--pictures", type=int, default=100)
    with tempfile.TemporaryDirectory() as name:
        main(parser.parse_args().pictures, Path(name))
