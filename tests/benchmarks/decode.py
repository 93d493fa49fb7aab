"""What decoding takes: processor time, address space and the round trip to the throw-away process, per request and format.

.venv/bin/python tests/benchmarks/decode.py [EDGE_PX]     7000 unless told: about the largest picture that may be sent

Ratios are of CPU, to proving the PNG.
"""

import io
import os
import platform
import sys
import time
from pathlib import Path
from statistics import median

from PIL import Image

from tools import decoder, pixels
from tools.pictures import Measured

REQUESTS = {"prove": (), "turn": (6,), "preview": (80, 1_000_000, 1568, 256)}
KINDS: dict[str, tuple[str, dict[str, object]]] = {
    "png": ("RGBA", {"compress_level": 1}),
    "jpeg": ("RGB", {}),
    "webp": ("RGBA", {"lossless": True, "method": 0, "quality": 0}),
}


def picture(kind: str, edge: int) -> bytes:
    mode, options = KINDS[kind]
    out = io.BytesIO()
    Image.effect_noise((1000, 1000), 60).resize((edge, edge)).convert(mode).save(out, kind.upper(), **options)
    return out.getvalue()


def costs(request: str, data: bytes) -> tuple[float, int]:
    """CPU seconds, and the most address space in MB, of a process that does nothing else."""
    ours, theirs = os.pipe()
    if os.fork() == 0:
        before = sum(os.times()[:2])
        pixels.make(request, data)
        peak = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmPeak"))
        os.write(theirs, f"{sum(os.times()[:2]) - before} {int(peak.split()[1]) // 1024}".encode())
        os._exit(0)
    os.close(theirs)
    os.wait()
    with os.fdopen(ours) as file:
        cpu, memory = file.read().split()
    return float(cpu), int(memory)


def round_trip_ms(runs: int = 100) -> float:
    data = picture("png", 2)
    took = []
    for _ in range(runs):
        started = time.perf_counter()
        decoder.prove(data, Measured("png", 2, 2))
        took.append(time.perf_counter() - started)
    return median(took) * 1000


def main() -> None:
    edge = int(sys.argv[1]) if len(sys.argv) > 1 else 7000
    print(f"{os.cpu_count()} cores, {platform.system()} {platform.release()} {platform.machine()}, load {os.getloadavg()[0]:.1f}")
    started = time.perf_counter()
    decoder.prove(picture("png", 2), Measured("png", 2, 2))
    print(f"first answer, with the start of the stem: {(time.perf_counter() - started) * 1000:.0f} ms")
    print(f"later ones, 2x2 pixels, median of 100: {round_trip_ms():.1f} ms\n")
    pixels.load()
    first = 0.0
    print("| format | request | in MB | CPU s | ratio | address space MB |")
    print("| ------ | ------- | ----: | ----: | ----: | ---------------: |")
    for kind in KINDS:
        data = picture(kind, edge)
        for word, arguments in REQUESTS.items():
            cpu, memory = costs(" ".join(map(str, (word, kind, edge, edge, *arguments))), data)
            first = first or cpu
            print(f"| {kind:6} | {word:7} | {len(data) >> 20:5} | {cpu:5.2f} | {cpu / first:5.1f} | {memory:16,} |", flush=True)


if __name__ == "__main__":
    main()
