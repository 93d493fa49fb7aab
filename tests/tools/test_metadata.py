"""Provenance inside the file: the real exiftool reads it, and not a pixel has changed."""

import json
import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from eventlog.values import ImageRequest
from tests.tools.pictures_for_tests import picture, pixels
from tools.metadata import Provenance, embed, extract
from tools.pictures import BadPicture, measure, png_chunks

JAPANESE = "雨の京都、石畳に映る提灯の明かり。🦊"


def provenance(prompt: str = "A fox", *, offline: bool = False) -> Provenance:
    request = ImageRequest(tool="generate_image", model="gpt-image-2", size="1024x1024")
    return Provenance(
        tool="generate_image",
        prompt=prompt,
        model="gpt-image-2",
        created="2026-11-22T10:00:00Z",
        size="48x32",
        quality="high",
        format="png",
        history_uuid="01a204f0-0000-7000-8000-000000000000",
        offline=offline,
        parameters=request,
    )


EXPECTED = {
    "MCP-Tool": "generate_image",
    "MCP-Prompt": "A fox",
    "MCP-Model": "gpt-image-2",
    "MCP-Created": "2026-11-22T10:00:00Z",
    "MCP-Size": "48x32",
    "MCP-Quality": "high",
    "MCP-Format": "png",
    "MCP-History-UUID": "01a204f0-0000-7000-8000-000000000000",
}


def read_by_exiftool(exiftool: Sequence[str], path: Path) -> dict[str, str]:
    done = subprocess.run([*exiftool, "-j", "-a", str(path)], capture_output=True, check=True, timeout=60)
    found: dict[str, str] = json.loads(done.stdout)[0]
    assert "Warning" not in found, found["Warning"]
    return found


@pytest.mark.parametrize("prompt", ["A fox", "Zoë\nand a line", JAPANESE])
def test_exiftool_reads_every_key(prompt: str, exiftool: Sequence[str], tmp_path: Path) -> None:
    path = tmp_path / "f.png"
    path.write_bytes(embed(picture("png"), provenance(prompt), "standard"))
    found = read_by_exiftool(exiftool, path)
    shown = {key.replace("-", "").lower(): value for key, value in found.items()}
    for key, value in {**EXPECTED, "MCP-Prompt": prompt}.items():
        assert str(shown[key.replace("-", "").lower()]).replace("\n", "..").replace("..", "\n") == value, key


def test_grep_mcp_works_as_the_old_readme_promised(exiftool: Sequence[str], tmp_path: Path) -> None:
    path = tmp_path / "f.png"
    path.write_bytes(embed(picture("png"), provenance(), "standard"))
    done = subprocess.run([*exiftool, str(path)], capture_output=True, check=True, timeout=60)
    lines = [line for line in done.stdout.decode().splitlines() if "MCP" in line]
    assert len(lines) == 8 and any("A fox" in line for line in lines)


@pytest.mark.parametrize("prompt", ["A fox", JAPANESE, "漢" * 32_000])
def test_what_was_written_is_read_back_and_the_pixels_are_untouched(prompt: str) -> None:
    before = picture("png")
    after = embed(before, provenance(prompt), "standard")
    assert extract(after) == {**EXPECTED, "MCP-Prompt": prompt}
    assert pixels(after) == pixels(before)
    assert [c.body for c in png_chunks(after) if c.kind == b"IDAT"] == [c.body for c in png_chunks(before) if c.kind == b"IDAT"]
    assert measure(after) == measure(before)


@given(st.text(alphabet=st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=300))
def test_any_prompt_survives(prompt: str) -> None:
    assert extract(embed(picture("png", 2, 2), provenance(prompt), "standard"))["MCP-Prompt"] == prompt


def test_levels_hold_what_they_say() -> None:
    data = picture("png")
    assert set(extract(embed(data, provenance(), "minimal"))) == {"MCP-History-UUID"}
    full = extract(embed(data, provenance(), "full"))
    assert set(full) == {*EXPECTED, "MCP-Parameters"}
    assert json.loads(full["MCP-Parameters"])["model"] == "gpt-image-2"
    assert embed(data, provenance(), "off") == data


@pytest.mark.parametrize("level", ["minimal", "standard", "full"])
def test_what_was_drawn_offline_says_so_at_every_level(level: str) -> None:
    assert extract(embed(picture("png"), provenance(offline=True), level))["MCP-Backend"] == "offline"  # type: ignore[arg-type]


def test_the_same_job_always_gives_the_same_bytes() -> None:
    assert embed(picture("png"), provenance(JAPANESE), "full") == embed(picture("png"), provenance(JAPANESE), "full")


def test_chunks_of_others_stay_where_they_are() -> None:
    data = picture("png")
    header = next(png_chunks(data)).end
    foreign = b"\0\0\0\x04caBX" + b"c2pa" + b"\0\0\0\0"
    with_foreign = data[:header] + foreign + data[header:]
    assert foreign in embed(with_foreign, provenance(), "standard")


@pytest.mark.parametrize("kind", ["jpeg", "webp", "gif"])
def test_files_of_other_kinds_are_left_as_they_are(kind: str) -> None:
    assert embed(picture(kind), provenance(), "full") == picture(kind)


def test_a_png_that_is_cut_off_is_not_made_worse() -> None:
    with pytest.raises(BadPicture):
        embed(picture("png")[:40], provenance(), "standard")
