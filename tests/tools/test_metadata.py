"""Provenance inside the file: the real exiftool reads it, and not a pixel has changed."""

import contextlib
import io
import json
import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from eventlog.values import ImageRequest
from tests.tools.pictures_for_tests import picture, pixels
from tools.metadata import Provenance, embed, extract
from tools.pictures import BadPicture, jpeg_segments, measure, png_chunks, webp_chunks

KINDS = ("png", "jpeg", "webp")

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


@pytest.mark.parametrize("prompt", ["A fox", JAPANESE, "漢" * 32_000, "🦊" * 32_000])
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


EXIF_KINDS = ["jpeg", "webp"]


def with_options(kind: str, mode: str = "RGB", **options: object) -> bytes:
    out = io.BytesIO()
    image = Image.effect_mandelbrot((48, 32), (-2, -1.5, 1, 1.5), 30).convert(mode)
    if mode == "RGBA":
        image.putalpha(90)  # encoders drop an alpha channel that hides nothing
    image.save(out, kind.upper(), **options)
    return out.getvalue()


def foreign_exif(order: str = "<") -> bytes:
    """What a camera or our own offline stand-in might have put there, in either byte order."""
    block = Image.Exif()
    block.endian = order
    block[0x010E] = "a description"
    block.get_ifd(0x8769)[0x9286] = b"ASCII\0\0\0older comment"
    block.get_ifd(0x8769)[0x829A] = 0.5
    block.get_ifd(0x8825)[0x001D] = "2026:11:22"
    return block.tobytes()


SOURCES = [
    picture("jpeg"),
    picture("webp"),
    with_options("jpeg", progressive=True, icc_profile=b"profile" * 9),
    with_options("jpeg", exif=foreign_exif("<")),
    with_options("jpeg", exif=foreign_exif(">")),
    with_options("webp", lossless=True),
    with_options("webp", "RGBA", lossless=True),
    with_options("webp", "RGBA", quality=50, icc_profile=b"profile" * 9, xmp=b"<x:xmpmeta/>"),
    with_options("webp", exif=foreign_exif("<"), xmp=b"<x:xmpmeta/>"),
    with_options("webp", exif=foreign_exif(">")),
]


@pytest.mark.parametrize("prompt", ["A fox", "Zoë\nand a line", JAPANESE])
@pytest.mark.parametrize("source", SOURCES, ids=range(len(SOURCES)))
def test_a_jpeg_or_webp_carries_the_same_keys_and_not_a_pixel_has_changed(source: bytes, prompt: str) -> None:
    after = embed(source, provenance(prompt), "standard")
    assert extract(after) == {**EXPECTED, "MCP-Prompt": prompt}
    assert measure(after) == measure(source)
    assert pixels(after) == pixels(source)
    assert carried(after) == carried(source)
    assert embed(source, provenance(prompt), "standard") == after


def carried(data: bytes) -> list[tuple[object, bytes]]:
    """Everything but EXIF and the WebP header, as it stands in the file; a JPEG's scan is the last."""
    if data[:4] == b"RIFF":
        return [(c.kind, bytes(c.body)) for c in webp_chunks(data) if c.kind not in (b"EXIF", b"VP8X")]
    segments = list(jpeg_segments(data))
    kept = [(m, data[a:b]) for m, a, b in segments if data[a + 4 : a + 8] != b"Exif"]
    return [*kept, ("scan", data[segments[-1][2] :])]


@pytest.mark.parametrize("source", [SOURCES[n] for n in (3, 4, 8, 9)], ids=["jpeg II", "jpeg MM", "webp II", "webp MM"])
def test_the_exif_of_others_is_kept(source: bytes, exiftool: Sequence[str], tmp_path: Path) -> None:
    path = tmp_path / "f.img"
    path.write_bytes(source)
    before = read_by_exiftool(exiftool, path)
    path.write_bytes(embed(source, provenance(JAPANESE), "standard"))
    after = read_by_exiftool(exiftool, path)
    assert after["ImageDescription"] == "a description" and after["GPSDateStamp"] == "2026:11:22"
    assert after["ExposureTime"] == before["ExposureTime"]
    assert before["UserComment"] == "older comment" and json.loads(after["UserComment"])["MCP-Prompt"] == JAPANESE


@pytest.mark.parametrize("prompt", ["A fox", "Zoë\nand a line", JAPANESE])
@pytest.mark.parametrize("kind", EXIF_KINDS)
def test_exiftool_reads_the_comment_without_a_warning(kind: str, prompt: str, exiftool: Sequence[str], tmp_path: Path) -> None:
    path = tmp_path / f"f.{kind}"
    path.write_bytes(embed(picture(kind), provenance(prompt), "standard"))
    assert json.loads(read_by_exiftool(exiftool, path)["UserComment"]) == {**EXPECTED, "MCP-Prompt": prompt}
    done = subprocess.run([*exiftool, "-validate", "-warning", "-a", str(path)], capture_output=True, check=True, timeout=60)
    warnings = [line for line in done.stdout.decode().splitlines() if line.startswith("Warning")]
    # What a camera must say of itself is not there, because there was no camera; the layout is beyond reproach.
    assert all("Missing required JPEG" in line for line in warnings), warnings
    grep = subprocess.run([*exiftool, str(path)], capture_output=True, check=True, timeout=60)
    assert [line for line in grep.stdout.decode().splitlines() if "MCP-Prompt" in line]


@pytest.mark.parametrize("prompt", ["x" * 32_000, "漢" * 32_000, "🦊" * 32_000, '"\n' * 16_000])
def test_the_longest_prompts_fit_into_a_webp_whole_and_into_a_jpeg_as_far_as_its_format_goes(prompt: str) -> None:
    whole = extract(embed(picture("webp"), provenance(prompt), "full"))
    assert whole["MCP-Prompt"] == prompt and "MCP-Prompt-Characters" not in whole
    jpeg = embed(picture("jpeg"), provenance(prompt), "standard")
    found = extract(jpeg)
    assert pixels(jpeg) == pixels(picture("jpeg"))
    if found["MCP-Prompt"] != prompt:
        kept = found["MCP-Prompt"].removesuffix("…")
        assert prompt.startswith(kept) and len(kept) > 15_000
        assert found["MCP-Prompt-Characters"] == "32000"
    assert found["MCP-History-UUID"] == EXPECTED["MCP-History-UUID"]


@pytest.mark.parametrize("kind", EXIF_KINDS)
def test_tags_stay_in_ascending_order_as_readers_expect(kind: str, exiftool: Sequence[str], tmp_path: Path) -> None:
    block = Image.Exif()
    block.get_ifd(0x8825)[0x001D] = "2026:11:22"  # a tag above that of the comment's directory
    path = tmp_path / f"f.{kind}"
    path.write_bytes(embed(with_options(kind, exif=block.tobytes()), provenance(), "standard"))
    done = subprocess.run([*exiftool, "-validate", "-warning", "-a", str(path)], capture_output=True, check=True, timeout=60)
    assert b"sequence" not in done.stdout and b"order" not in done.stdout, done.stdout
    assert read_by_exiftool(exiftool, path)["GPSDateStamp"] == "2026:11:22"


def test_a_webp_says_in_its_header_that_it_has_exif_and_whether_it_is_transparent() -> None:
    for source, transparent in (
        (picture("webp"), False),
        (with_options("webp", lossless=True), False),
        (with_options("webp", "RGBA", lossless=True), True),
        (with_options("webp", "RGBA", quality=50), True),
    ):
        header = next(webp_chunks(embed(source, provenance(), "standard")))
        assert header.kind == b"VP8X" and header.body[0] & 0x08
        assert bool(header.body[0] & 0x10) == transparent


def test_a_webp_with_a_strange_header_is_left_alone() -> None:
    simple = picture("webp")
    body = b"WEBP" + b"VP8X\0\0\0\0" + simple[12:]
    strange = b"RIFF" + len(body).to_bytes(4, "little") + body
    assert measure(strange) == measure(simple)
    assert embed(strange, provenance(), "standard") == strange


def test_a_jpeg_without_room_for_a_label_stays_as_it_is() -> None:
    full = with_options("jpeg", exif=b"Exif\0\0MM\0*\0\0\0\x08\0\0\0\0\0\0" + bytes(65_300))
    assert embed(full, provenance(), "standard") == full
    assert extract(embed(full, provenance(), "minimal")) == {"MCP-History-UUID": EXPECTED["MCP-History-UUID"]}


@pytest.mark.parametrize("block", [b"", b"II", b"XX*\0\x08\0\0\0", b"II*\0\xff\xff\0\0", b"II*\0\x08\0\0\0\xff\xff"])
@pytest.mark.parametrize("kind", EXIF_KINDS)
def test_exif_that_is_damaged_is_left_alone_and_the_picture_with_it(kind: str, block: bytes) -> None:
    source = with_options(kind, exif=b"Exif\0\0" + block)
    after = embed(source, provenance(), "standard")
    assert carried(after) == carried(source)
    assert after == source if block else extract(after) == EXPECTED


@settings(max_examples=300, deadline=None)
@given(st.sampled_from([*SOURCES, picture("png")]), st.lists(st.tuples(st.integers(0, 10**6), st.integers(0, 255)), max_size=3))
def test_whatever_passes_for_a_picture_takes_its_label_without_a_crash(source: bytes, changes: list[tuple[int, int]]) -> None:
    data = bytearray(source)
    for place, value in changes:
        data[place % min(len(data), 300)] = value
    try:
        before = measure(bytes(data))
    except BadPicture:
        return
    after = embed(bytes(data), provenance(), "full")
    assert measure(after) == before
    extract(after)


@given(st.sampled_from(KINDS), st.binary(max_size=120))
def test_reading_labels_of_strangers_never_crashes(kind: str, tail: bytes) -> None:
    with contextlib.suppress(BadPicture):
        assert isinstance(extract(picture(kind)[:20] + tail), dict)


@pytest.mark.parametrize("kind", ["gif"])
def test_files_of_other_kinds_are_left_as_they_are(kind: str) -> None:
    assert embed(picture(kind), provenance(), "full") == picture(kind)


def test_a_png_that_is_cut_off_is_not_made_worse() -> None:
    with pytest.raises(BadPicture):
        embed(picture("png")[:40], provenance(), "standard")
