"""The official clients, the bridge and the daemon together."""

import json
import subprocess
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import mcp
import pytest
import trio
from mcp.client.stdio import StdioServerParameters

from tests.conftest import beside_python
from tests.program import IMAGED, SECONDS_MAX, environment, running

TOOLS = {
    "generate_image",
    "list_history",
    "get_history_by_uuid",
    "list_jobs",
    "check_job_status",
    "wait_for_job",
    "get_job_result",
    "edit_image",
    "transform_image",
    "start_generation_job",
    "cancel_job",
    "list_generated_images",
    "get_metadata_from_image",
    "retry_job",
    "get_spending",
}


async def draw_with_python(home: Path, mode: str, program: Sequence[str] = IMAGED) -> None:
    server = StdioServerParameters(command=program[0], args=[*program[1:], "mcp"], env=environment(home), cwd="/")
    with trio.fail_after(SECONDS_MAX):
        async with mcp.Client(server, mode=mode) as client:  # type: ignore[arg-type]
            listed = await client.list_tools()
            assert {tool.name for tool in listed.tools} == TOOLS
            result = await client.call_tool("generate_image", {"prompt": "A blue boat", "output_path": "boat.png"})
            assert not result.is_error
            (image,) = result.structured_content["images"]
            assert Path(image["path"]).read_bytes().startswith(b"\x89PNG")
            assert "boat.png" in result.content[0].text  # type: ignore[union-attr]
            found = await client.call_tool("list_history", {"query": "BLUE"})
            assert found.structured_content["total"] == 1


@pytest.mark.parametrize("mode", ["auto", "legacy", "2026-07-28"])
def test_the_official_python_client_lists_tools_and_draws(mode: str, tmp_path: Path) -> None:
    with running(tmp_path):
        trio.run(partial(draw_with_python, tmp_path, mode))


def test_the_official_typescript_client_lists_tools_and_draws(npm_packages: Path, tmp_path: Path) -> None:
    with running(tmp_path):
        done = subprocess.run(
            [beside_python("node"), str(npm_packages / "draw.mjs"), *IMAGED, "mcp"],
            env=environment(tmp_path),
            capture_output=True,
            timeout=SECONDS_MAX,
            check=False,
        )
    assert done.returncode == 0, done.stderr.decode()
    said = json.loads(done.stdout)
    assert set(said["tools"]) == TOOLS
    (image,) = said["result"]["structuredContent"]["images"]
    assert Path(image["path"]).name == "kite.png"
    assert Path(image["path"]).read_bytes().startswith(b"\x89PNG")
    assert said["progress"], "the client asked for progress and got none"
    assert said["refused"]["isError"] and said["refused"]["structuredContent"]["error"]["code"] == "model_retired"
