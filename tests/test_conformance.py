"""The official conformance suite and the official inspector, through our bridge, our socket and our daemon.

The suite asks for tools by names of its own, so for it the daemon serves another registry (tests/conformance). What it is
known not to pass stands in tests/conformance/expected.json, each with its reason. The inspector looks at the real tools.
"""

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from daemon.operations import OPERATIONS
from daemon.prompts import PROMPTS
from tests.conformance.http_bridge import bridging
from tests.conftest import beside_python
from tests.program import IMAGED, SECONDS_MAX, Program, environment, running

ROOT = Path(__file__).resolve().parent.parent
EXPECTED: dict[str, Any] = json.loads((ROOT / "tests/conformance/expected.json").read_text("utf-8"))
FIXTURE_DAEMON = [sys.executable, "-m", "tests.conformance.fixture_daemon", "serve"]
SUITE = "node_modules/@modelcontextprotocol/conformance/dist/index.js"
INSPECTOR = "node_modules/@modelcontextprotocol/inspector/clients/launcher/build/index.js"
SCENARIO_SECONDS_MAX = 20  # the longest needs 5, waiting for notifications that must not come
SUITE_SECONDS_MAX = 180  # it needs 5 to 10
RESULT = re.compile(r"server-(?P<scenario>.+)-\d{4}-\d\d-\d\dT[\d-]+Z")  # a folder of its results


@contextmanager
def fixture_daemon(home: Path) -> Iterator[None]:
    program = Program(home, FIXTURE_DAEMON, PYTHONPATH=str(ROOT)).start()
    try:
        program.ready()
        yield
    finally:
        program.kill()


def checks(results: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Every check of every scenario that ran. INFO says what was done, or that a check does not apply."""
    for path in sorted(results.glob("*/checks.json")):
        named = RESULT.fullmatch(path.parent.name)
        assert named, path.parent.name
        for check in json.loads(path.read_text("utf-8")):
            if check["status"] != "INFO":
                yield named["scenario"], check


@pytest.mark.parametrize("version", EXPECTED)
def test_the_conformance_suite_passes_but_for_what_is_written_down(version: str, npm_packages: Path, tmp_path: Path) -> None:
    with fixture_daemon(tmp_path), bridging([*IMAGED, "mcp"], environment(tmp_path)) as url:
        options = ["--url", url, "--suite", "all", "--spec-version", version, "--output-dir", str(tmp_path / "results")]
        options += ["--timeout", str(SCENARIO_SECONDS_MAX * 1000)]
        done = subprocess.run(
            [beside_python("node"), str(npm_packages / SUITE), "server", *options],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=SUITE_SECONDS_MAX,
            check=False,
        )
    ran = list(checks(tmp_path / "results"))
    missed = {
        (scenario, check["id"], check["status"]): check.get("errorMessage")
        for scenario, check in ran
        if check["status"] != "SUCCESS"
    }
    known = {(each["scenario"], each["check"], each["status"]) for each in EXPECTED[version]["exceptions"]}
    assert missed.keys() == known, (missed, done.stderr)
    # Another number: a release of the suite with other checks, or scenarios that did not run.
    assert len(ran) - len(missed) == EXPECTED[version]["passed"], done.stderr


def inspect(npm_packages: Path, home: Path, era: str, *options: str) -> dict[str, Any]:
    """The result of one method of the real server. The inspector ends with another status than 0 if it finds fault."""
    given = environment(home)
    settings = [
        word for name, value in given.items() if name.startswith(("IMAGED_", "OPENAI_")) for word in ("-e", f"{name}={value}")
    ]
    command = [beside_python("node"), str(npm_packages / INSPECTOR), "--cli", *IMAGED, "mcp", *settings]
    done = subprocess.run(
        [*command, "--protocol-era", era, "--format", "json", *options],
        env=given,
        cwd=home,
        capture_output=True,
        text=True,
        timeout=SECONDS_MAX,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, ""), (options, done.returncode, done.stderr, done.stdout)
    result: dict[str, Any] = json.loads(done.stdout)["result"]
    return result


def test_the_strict_inspector_finds_no_fault_with_the_real_tools(npm_packages: Path, tmp_path: Path) -> None:
    for_clients = [operation.name for operation in OPERATIONS.values() if not operation.for_people]
    with running(tmp_path):
        for era in ("legacy", "modern", "auto"):
            listed = inspect(npm_packages, tmp_path, era, "--method", "tools/list", "--strict")
            assert [tool["name"] for tool in listed["tools"]] == for_clients
        for era in ("legacy", "modern"):
            offered = inspect(npm_packages, tmp_path, era, "--method", "prompts/list")
            assert [prompt["name"] for prompt in offered["prompts"]] == list(PROMPTS)
            arguments = json.dumps({"prompt": "A red kite", "output_path": f"{era}.png"})
            drawing = ("--method", "tools/call", "--tool-name", "generate_image", "--tool-args-json", arguments)
            answer = inspect(npm_packages, tmp_path, era, *drawing)["structuredContent"]
            (image,) = answer["images"]
            assert Path(image["path"]).name == f"{era}.png" and Path(image["path"]).read_bytes().startswith(b"\x89PNG")
            kept = inspect(npm_packages, tmp_path, era, "--method", "resources/list")
            assert any(answer["job_id"] in resource["uri"] for resource in kept["resources"])
