"""Provenance inside the file: the real exiftool reads it, and not a pixel has changed."""

import contextlib
import io
import json
import re
import subprocess
import zlib
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from eventlog.values import Embedding, ImageRequest
from tests.tools.pictures_for_tests import picture, pixels
from tools import containers
from tools.metadata import Provenance, embed, extract, has_credentials, sidecar
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
        derived_from=RECEIVED,
    )


TRAINED = "http://cv.iptc.org/newscodes/digitalsourcetype/trainedAlgorithmicMedia"
COMPOSITE = "http://cv.iptc.org/newscodes/digitalsourcetype/compositeWithTrainedAlgorithmicMedia"
RECEIVED = "ab" * 32

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


def validated(exiftool: Sequence[str], path: Path) -> list[str]:
    """What exiftool complains about, but for what a camera must say of itself: there was no camera."""
    done = subprocess.run([*exiftool, "-validate", "-warning", "-a", str(path)], capture_output=True, check=True, timeout=60)
    assert b"Validate" in done.stdout
    warnings = [line for line in done.stdout.decode().splitlines() if line.startswith("Warning")]
    return [line for line in warnings if "Missing required JPEG" not in line]


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
    """Everything but EXIF, XMP and the WebP header, as it stands in the file; a JPEG's scan is the last."""
    if data[:4] == b"RIFF":
        return [(c.kind, bytes(c.body)) for c in webp_chunks(data) if c.kind not in (b"EXIF", b"XMP ", b"VP8X")]
    segments = list(jpeg_segments(data))
    labels = b"Exif\0", b"http://ns.adobe.com/xap/1.0/", b"http://ns.adobe.com/xmp/extension/"
    kept = [(m, data[a:b]) for m, a, b in segments if not data.startswith(labels, a + 4)]
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
    assert validated(exiftool, path) == []
    grep = subprocess.run([*exiftool, str(path)], capture_output=True, check=True, timeout=60)
    assert [line for line in grep.stdout.decode().splitlines() if "MCP-Prompt" in line]


LONG = {
    "latin": "x" * 32_000,
    "japanese": "漢" * 32_000,
    "four bytes each": "🦊" * 32_000,
    "combining": "e\u0301" * 16_000,
    "escaped": "\"\n&<>]'\t" * 4_000,
    "returns": "\r\n" * 16_000,
    "control": "".join(map(chr, range(32))) * 1_000,
    "surrogates": "\ud83e x\udd8a\uffff" * 6_400,
    "all": ("🦊漢é\r\n&<" + "\x1b\x00") * 4_000,
}


@pytest.mark.parametrize("level", ["standard", "full"])
@pytest.mark.parametrize("text", LONG)
@pytest.mark.parametrize("kind", KINDS)
def test_32000_characters_of_any_text_are_read_back_whole(kind: str, text: str, level: Embedding) -> None:
    prompt = re.sub("[\ud800-\udfff]", "\ufffd", LONG[text])
    after = embed(picture(kind), provenance(LONG[text]), level)
    found = extract(after)
    in_xml = re.sub("[^\t\n\r -\ufffd\U00010000-\U0010ffff]", "\ufffd", prompt)
    assert found["MCP-Prompt"] in (prompt, in_xml, prompt.replace("\0", "\ufffd"))
    assert found.keys() == {*EXPECTED, *(["MCP-Parameters"] if level == "full" else [])}
    assert pixels(after) == pixels(picture(kind))
    assert embed(picture(kind), provenance(LONG[text]), level) == after


@pytest.mark.parametrize("prompt", [LONG["four bytes each"], '漢&<"\n' * 6_400])
def test_exiftool_reads_the_prompt_that_a_jpeg_holds_in_several_segments(
    prompt: str, exiftool: Sequence[str], tmp_path: Path
) -> None:
    path = tmp_path / "f.jpeg"
    path.write_bytes(embed(picture("jpeg"), provenance(prompt), "full"))
    found = read_by_exiftool(exiftool, path)
    assert found["Description"] == prompt and found["DigitalSourceType"] == TRAINED
    assert validated(exiftool, path) == []
    comment = json.loads(found["UserComment"])
    assert comment["MCP-Prompt-Characters"] == "32000" and prompt.startswith(comment["MCP-Prompt"].removesuffix("…"))


def test_a_prompt_that_a_stranger_put_beside_a_cut_one_is_not_taken_for_the_rest_of_it() -> None:
    after = embed(picture("jpeg"), provenance("🦊" * 32_000), "standard")
    forged = after.replace("🦊".encode() * 1_000, "🐻".encode() * 1_000)
    found = extract(forged)
    assert found["MCP-Prompt"].startswith("🦊") and found["MCP-Prompt-Characters"] == "32000"


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


def test_a_jpeg_without_room_in_its_exif_carries_its_label_in_xmp() -> None:
    full = with_options("jpeg", exif=b"Exif\0\0MM\0*\0\0\0\x08\0\0\0\0\0\0" + bytes(65_300))
    after = embed(full, provenance(), "standard")
    assert exif_of(after) == exif_of(full) and extract(after) == EXPECTED
    assert extract(embed(full, provenance(), "minimal")) == {"MCP-History-UUID": EXPECTED["MCP-History-UUID"]}


@pytest.mark.parametrize("block", [b"", b"II", b"XX*\0\x08\0\0\0", b"II*\0\xff\xff\0\0", b"II*\0\x08\0\0\0\xff\xff"])
@pytest.mark.parametrize("kind", EXIF_KINDS)
def test_exif_that_is_damaged_is_left_alone(kind: str, block: bytes) -> None:
    source = with_options(kind, exif=b"Exif\0\0" + block)
    after = embed(source, provenance(), "standard")
    assert carried(after) == carried(source) and extract(after) == EXPECTED
    assert not block or exif_of(after) == exif_of(source)


def exif_of(data: bytes) -> list[bytes]:
    if data[:4] == b"RIFF":
        return [bytes(chunk.body) for chunk in webp_chunks(data) if chunk.kind == b"EXIF"]
    return [data[a:b] for _, a, b in jpeg_segments(data) if data.startswith(b"Exif", a + 4)]


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
    extract(bytes(data))


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


LEVELS: tuple[Embedding, ...] = ("minimal", "standard", "full")


@pytest.mark.parametrize("kind", KINDS)
def test_exiftool_reads_how_the_picture_was_made_at_every_level(kind: str, exiftool: Sequence[str], tmp_path: Path) -> None:
    for edited, source_type in ((False, TRAINED), (True, COMPOSITE)):
        for level in LEVELS:
            path = tmp_path / f"{level}.{kind}"
            path.write_bytes(embed(picture(kind), provenance()._replace(edited=edited), level))
            command = [*exiftool, "-s3", "-XMP-iptcExt:DigitalSourceType", str(path)]
            done = subprocess.run(command, capture_output=True, check=True, timeout=60)
            assert done.stdout.decode().strip() == source_type
            assert validated(exiftool, path) == []


def xmp_by_exiftool(exiftool: Sequence[str], path: Path) -> dict[str, str]:
    done = subprocess.run([*exiftool, "-j", "-G1", "-XMP:all", str(path)], capture_output=True, check=True, timeout=60)
    found: dict[str, str] = json.loads(done.stdout)[0]
    return {key: value for key, value in found.items() if key.startswith("XMP-")}


@pytest.mark.parametrize("kind", [*KINDS, "xmp"])
def test_xmp_holds_what_the_level_says(kind: str, exiftool: Sequence[str], tmp_path: Path) -> None:
    made = {}
    for level in LEVELS:
        path = tmp_path / f"{level}.{kind}"
        given = provenance(JAPANESE)
        path.write_bytes(sidecar(given, level) if kind == "xmp" else embed(picture(kind), given, level))
        made[level] = xmp_by_exiftool(exiftool, path)
        made[level].pop("XMP-x:XMPToolkit", None)
    minimal = {"XMP-iptcExt:DigitalSourceType": TRAINED, "XMP-imaged:MCP-History-UUID": EXPECTED["MCP-History-UUID"]}
    assert made["minimal"] == minimal
    assert made["standard"] == {
        **minimal,
        "XMP-dc:Description": JAPANESE,
        "XMP-xmp:CreatorTool": "imaged gpt-image-2",
        "XMP-xmp:CreateDate": "2026:11:22 10:00:00Z",
        **{f"XMP-imaged:{key}": value for key, value in EXPECTED.items()},
        "XMP-imaged:MCP-Prompt": JAPANESE,
        "XMP-imaged:MCP-Created": "2026:11:22 10:00:00Z",
    }
    parameters = made["full"].pop("XMP-imaged:MCP-Parameters")
    assert json.loads(parameters)["model"] == "gpt-image-2" and made["full"] == made["standard"]


def test_a_sidecar_is_a_file_of_its_own_and_always_the_same(exiftool: Sequence[str], tmp_path: Path) -> None:
    path = tmp_path / "f.xmp"
    for prompt in ("A fox", LONG["four bytes each"]):
        path.write_bytes(sidecar(provenance(prompt), "full"))
        assert read_by_exiftool(exiftool, path)["Description"] == prompt and validated(exiftool, path) == []
        assert sidecar(provenance(prompt), "full") == path.read_bytes()
    assert b"MCP-" not in sidecar(provenance(), "off") and b"DigitalSourceType" not in sidecar(provenance(), "off")


FOREIGN_XMP = b"""<?xpacket begin="" id="W5M0MpCehiHzreSzNTczkc9d"?><x:xmpmeta xmlns:x="adobe:ns:meta/">
<r:RDF xmlns:r="http://www.w3.org/1999/02/22-rdf-syntax-ns#"><!-- theirs -->
<r:Description r:about="uuid:1" xmlns:dc="http://purl.org/dc/elements/1.1/" xmlns:q="urn:else" q:rating='five'>
<dc:creator><r:Seq><r:li>Somebody</r:li></r:Seq></dc:creator>
</r:Description></r:RDF></x:xmpmeta>      <?xpacket end="w"?>"""


def segment(marker: int, body: bytes) -> bytes:
    return b"\xff" + bytes((marker,)) + (len(body) + 2).to_bytes(2, "big") + body


def png_chunk(kind: bytes, body: bytes) -> bytes:
    return len(body).to_bytes(4, "big") + kind + body + zlib.crc32(kind + body).to_bytes(4, "big")


def with_piece(kind: str, piece: bytes) -> bytes:
    """A chunk or segment put into a picture where it is allowed to stand."""
    if kind == "svg":
        return b"<svg xmlns='http://www.w3.org/2000/svg'>" + piece + b"</svg>"
    data = picture(kind)
    if kind == "png":
        place = next(png_chunks(data)).end
        return data[:place] + piece + data[place:]
    if kind == "jpeg":
        place = next(end for marker, _, end in jpeg_segments(data) if marker == 0xE0)
        return data[:place] + piece + data[place:]
    if kind == "webp":
        simple = with_options("webp", xmp=b"?")  # for its extended header
        inner = simple[8 : next(c.start for c in webp_chunks(simple) if c.kind == b"XMP ")] + piece
        return b"RIFF" + len(inner).to_bytes(4, "little") + inner.replace(b"VP8X\n\0\0\0\x04", b"VP8X\n\0\0\0\0")
    place = 13 + 3 * 2 ** ((data[10] & 7) + 1)
    return data[:place] + piece + data[place:]


def xmp_piece(kind: str, packet: bytes) -> bytes:
    match kind:
        case "png":
            return png_chunk(b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + packet)
        case "jpeg":
            return segment(0xE1, b"http://ns.adobe.com/xap/1.0/\0" + packet)
        case _:
            return b"XMP " + len(packet).to_bytes(4, "little") + packet + bytes(len(packet) % 2)


@pytest.mark.parametrize("prompt", ["A fox", LONG["four bytes each"]])
@pytest.mark.parametrize("kind", KINDS)
def test_the_xmp_of_others_is_kept_and_ours_put_into_it(kind: str, prompt: str, exiftool: Sequence[str], tmp_path: Path) -> None:
    path = tmp_path / f"f.{kind}"
    source = with_piece(kind, xmp_piece(kind, FOREIGN_XMP))
    after = embed(source, provenance(prompt), "standard")
    path.write_bytes(after)
    found = read_by_exiftool(exiftool, path)
    assert found["Creator"] == "Somebody" and found["Rating"] == "five" and found["About"] == "uuid:1"
    assert found["DigitalSourceType"] == TRAINED and found["Description"] == prompt
    assert validated(exiftool, path) == []
    assert extract(after) == {**EXPECTED, "MCP-Prompt": prompt} and pixels(after) == pixels(source)
    assert FOREIGN_XMP.partition(b"</r:RDF>")[0] in after


@pytest.mark.parametrize(
    "packet",
    [
        b'<!DOCTYPE x [<!ENTITY e "e">]>' + FOREIGN_XMP,
        FOREIGN_XMP.replace(b"</r:RDF>", b""),
        b"<x:xmpmeta/>",
        b"<x/>",
        b"",
        FOREIGN_XMP.decode().encode("utf-16"),
    ],
)
@pytest.mark.parametrize("kind", KINDS)
def test_xmp_that_is_not_understood_is_left_exactly_as_it_is(kind: str, packet: bytes) -> None:
    piece = xmp_piece(kind, packet)
    after = embed(with_piece(kind, piece), provenance(), "standard")
    assert piece in after and b"DigitalSourceType" not in after.replace(piece, b"")
    assert extract(after) == EXPECTED


def test_a_jpeg_whose_xmp_leaves_no_room_keeps_it_as_it_is() -> None:
    piece = xmp_piece("jpeg", FOREIGN_XMP.replace(b"      ", b" " * (65_400 - len(FOREIGN_XMP))))
    after = embed(with_piece("jpeg", piece), provenance(), "standard")
    assert piece in after and extract(after) == EXPECTED


def extended(extension: bytes, guid: bytes = b"C" * 32) -> bytes:
    """Another program's packet and its extension, in two pieces and in the wrong order."""
    note = b'<r:Description r:about="uuid:1" xmlns:n="http://ns.adobe.com/xmp/note/" n:HasExtendedXMP="' + guid + b'"/></r:RDF>'
    head = b"http://ns.adobe.com/xmp/extension/\0" + guid + len(extension).to_bytes(4, "big")
    pieces = [segment(0xE1, head + at.to_bytes(4, "big") + extension[at : at + 100]) for at in range(0, len(extension), 100)]
    return xmp_piece("jpeg", FOREIGN_XMP.replace(b"</r:RDF>", note)) + b"".join(reversed(pieces))


EXTENSION = FOREIGN_XMP.replace(b"Somebody", b"Somebody else").replace(b"creator", b"publisher").replace(b"Seq", b"Bag")


@pytest.mark.parametrize("prompt", ["A fox", LONG["four bytes each"]])
def test_the_extended_xmp_of_others_is_kept(prompt: str, exiftool: Sequence[str], tmp_path: Path) -> None:
    path = tmp_path / "f.jpeg"
    after = embed(with_piece("jpeg", extended(EXTENSION)), provenance(prompt), "standard")
    path.write_bytes(after)
    found = read_by_exiftool(exiftool, path)
    assert (found["Creator"], found["Publisher"], found["Description"]) == ("Somebody", "Somebody else", prompt)
    assert validated(exiftool, path) == [] and extract(after)["MCP-Prompt"] == prompt


def test_extended_xmp_that_is_not_there_whole_is_not_read() -> None:
    after = embed(picture("jpeg"), provenance(LONG["four bytes each"]), "standard")
    mark = b"http://ns.adobe.com/xmp/extension/"
    last = [(a, b) for _, a, b in jpeg_segments(after) if data_at(after, a).startswith(mark)][-1]
    found = extract(after[: last[0]] + after[last[1] :])
    assert found["MCP-Prompt-Characters"] == "32000" and found["MCP-Prompt"].endswith("…")


@pytest.mark.parametrize(("total", "offset"), [(7, 0), (9, 0), (8, 1)])
def test_an_extension_of_another_length_than_it_says_is_not_there(total: int, offset: int) -> None:
    def held(total: int, offset: int) -> bytes:
        numbers = total.to_bytes(4, "big") + offset.to_bytes(4, "big")
        piece = segment(0xE1, b"http://ns.adobe.com/xmp/extension/\0" + b"C" * 32 + numbers + b"12345678")
        return containers.extension(with_piece("jpeg", piece), "C" * 32)

    assert held(8, 0) == b"12345678" and held(total, offset) == b""


def test_a_text_chunk_of_ours_holds_no_zero_and_one_of_a_stranger_may_be_damaged() -> None:
    after = embed(picture("png"), provenance("a\0b漢"), "standard")
    assert extract(after)["MCP-Prompt"] == "a\ufffdb漢"
    assert extract(with_piece("png", png_chunk(b"iTXt", b"MCP-Tool\0\0\0x"))) == {}


def test_a_long_prompt_takes_the_place_of_a_short_one() -> None:
    short = embed(picture("jpeg"), provenance("A fox"), "standard")
    after = embed(short, provenance(LONG["four bytes each"]), "standard")
    assert extract(after)["MCP-Prompt"] == LONG["four bytes each"] and after.count(b"<dc:description>") == 1


def data_at(data: bytes, start: int) -> bytes:
    return data[start + 4 : start + 64]


def test_labels_stand_where_readers_look_for_them() -> None:
    jpeg = embed(picture("jpeg"), provenance(), "standard")
    assert [data_at(jpeg, a)[:5] for m, a, _ in jpeg_segments(jpeg) if 0xE0 <= m < 0xF0] == [b"JFIF\0", b"Exif\0", b"http:"]
    for source in (picture("webp"), with_piece("webp", b"C2PA\4\0\0\0jumb"), with_options("webp", "RGBA", quality=50)):
        chunks = list(webp_chunks(embed(source, provenance(), "standard")))
        kinds = [chunk.kind for chunk in chunks if chunk.kind != b"ALPH"]
        assert kinds[:4] == [b"VP8X", b"VP8 ", b"EXIF", b"XMP "] and kinds[4:] in ([], [b"C2PA"])
        assert chunks[0].body[0] & 0x0C == 0x0C
    png = [chunk.kind for chunk in png_chunks(embed(picture("png"), provenance(), "minimal"))]
    assert png == [b"IHDR", b"iTXt", b"tEXt", b"IDAT", b"IEND"] or png == [b"IHDR", b"tEXt", b"iTXt", b"IDAT", b"IEND"]


JUMBF = b"\0\0\0\x2cjumb\0\0\0\x24jumdc2pa\0\x11\0\x10\x80\0\0\xaa\0\x38\x9b\x71\x03c2pa\0"
CREDENTIALS = {
    "png": png_chunk(b"caBX", JUMBF),
    "jpeg": segment(0xEB, b"JP\0\1\0\0\0\1" + JUMBF),
    "webp": b"C2PA" + len(JUMBF).to_bytes(4, "little") + JUMBF + bytes(len(JUMBF) % 2),
    "gif": b"!\xff\x0bC2PA_GIF\1\0\0" + bytes((len(JUMBF),)) + JUMBF + b"\0",
    "svg": b"<metadata><c2pa:manifest xmlns:c2pa='http://c2pa.org/manifest'>AAAA</c2pa:manifest></metadata>",
}


@pytest.mark.parametrize("kind", CREDENTIALS)
def test_content_credentials_are_seen_in_every_kind_of_file(kind: str) -> None:
    assert has_credentials(with_piece(kind, CREDENTIALS[kind]))
    assert not has_credentials(picture(kind) if kind != "svg" else b"<svg></svg>")


@pytest.mark.parametrize(
    ("kind", "piece"),
    [
        ("png", png_chunk(b"tEXt", b"Comment\0caBX c2pa")),
        ("jpeg", segment(0xEB, b"JP\0\1\0\0\0\1" + JUMBF.replace(b"c2pa", b"else"))),
        ("jpeg", segment(0xEB, b"c2pa")),
        ("jpeg", segment(0xEC, CREDENTIALS["jpeg"][4:])),
        ("webp", b"else\4\0\0\0C2PA"),
        ("gif", b"!\xfe\x0bC2PA_GIF\1\0\0\0"),
        ("gif", b"!\xff\x0bNETSCAPE2.0\x0eC2PA_GIF!\xff\x0b...\0"),
    ],
)
def test_what_only_looks_like_content_credentials_is_none(kind: str, piece: bytes) -> None:
    assert not has_credentials(with_piece(kind, piece))


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("kind", KINDS)
def test_a_copy_of_a_picture_with_credentials_says_what_it_was_made_from(
    kind: str, level: Embedding, exiftool: Sequence[str], tmp_path: Path
) -> None:
    path = tmp_path / f"f.{kind}"
    source = with_piece(kind, CREDENTIALS[kind])
    after = embed(source, provenance(), level)
    assert CREDENTIALS[kind] in after and pixels(after) == pixels(source)
    assert extract(after)["MCP-Derived-From"] == f"sha256:{RECEIVED}"
    path.write_bytes(after)
    assert xmp_by_exiftool(exiftool, path)["XMP-xmpMM:DerivedFromDocumentID"] == f"sha256:{RECEIVED}"
    assert "MCP-Derived-From" not in extract(embed(picture(kind), provenance(), level))
    assert b"DerivedFrom" not in embed(picture(kind), provenance(), level)
    assert embed(source, provenance(), "off") == source


@pytest.mark.parametrize("kind", ["gif", "svg"])
def test_credentials_of_what_is_not_labelled_stay_as_they_are(kind: str) -> None:
    source = with_piece(kind, CREDENTIALS[kind])
    assert embed(source, provenance(), "full") == source and extract(source) == {}


OLD = {
    "openai_gpt_image_uuid": "5a0c8f2e-1111-4222-8333-444455556666",
    "params_hash": "0" * 64,
    "tool_name": "generate_image",
    "model": "gpt-image-1",
    "created_at": "2025-05-05T05:05:05.000Z",
    "size": "1024x1024",
    "quality": "medium",
    "prompt": "An old fox",
    "parameters": {"n": 1, "nested": {"deep": [1]}},
}
OLD_READ = {
    "MCP-History-UUID": "5a0c8f2e-1111-4222-8333-444455556666",
    "MCP-Tool": "generate_image",
    "MCP-Model": "gpt-image-1",
    "MCP-Created": "2025-05-05T05:05:05.000Z",
    "MCP-Size": "1024x1024",
    "MCP-Quality": "medium",
    "MCP-Prompt": "An old fox",
    "MCP-Legacy": "openai-gpt-image-mcp-server",
}


def as_the_old_program_wrote(kind: str, label: object) -> bytes:
    text = json.dumps(label).encode()
    if kind == "png":
        chunk = png_chunk(b"tEXt", b"openai_gpt_image_metadata\0" + text)
        return picture("png")[:-12] + chunk + picture("png")[-12:]
    block = Image.Exif()
    block[0x010E] = text.decode()
    return with_options(kind, exif=block.tobytes())


@pytest.mark.parametrize("kind", KINDS)
def test_what_the_old_program_wrote_is_read_and_said_to_be_its(kind: str) -> None:
    assert extract(as_the_old_program_wrote(kind, OLD)) == OLD_READ
    few = {"openai_gpt_image_uuid": OLD["openai_gpt_image_uuid"], "params_hash": "0"}
    names = ("MCP-History-UUID", "MCP-Legacy")
    assert extract(as_the_old_program_wrote(kind, few)) == {key: OLD_READ[key] for key in names}
    odd = {**few, "size": 7, "prompt": None, "model": ["x"]}
    assert extract(as_the_old_program_wrote(kind, odd)) == {key: OLD_READ[key] for key in names}


@pytest.mark.parametrize("kind", KINDS)
def test_our_own_keys_win_over_those_of_the_old_program(kind: str) -> None:
    assert extract(embed(as_the_old_program_wrote(kind, OLD), provenance(), "standard")) == EXPECTED


@pytest.mark.parametrize("label", [[], "text", 7, {}, {"prompt": "a title by somebody"}, {"openai_gpt_image_uuid": 1}])
@pytest.mark.parametrize("kind", KINDS)
def test_a_description_by_somebody_else_is_not_the_old_program_s(kind: str, label: object) -> None:
    assert extract(as_the_old_program_wrote(kind, label)) == {}


def test_compressed_text_is_not_inflated() -> None:
    bomb = zlib.compress(bytes(50_000_000))
    pieces = (
        png_chunk(b"zTXt", b"MCP-Prompt\0\0" + bomb),
        png_chunk(b"iTXt", b"MCP-Tool\0\1\0\0\0" + bomb),
        png_chunk(b"iTXt", b"XML:com.adobe.xmp\0\1\0\0\0" + bomb),
    )
    for piece in pieces:
        assert extract(with_piece("png", piece)) == {}
        after = embed(with_piece("png", piece), provenance(), "standard")
        assert piece in after and extract(after) == EXPECTED


def test_labels_without_measure_are_not_read() -> None:
    many = b"".join(png_chunk(b"tEXt", b"MCP-%d\0x" % number) for number in range(1_000))
    assert len(extract(with_piece("png", many))) == 64
    for key in (b"MCP-Prompt", b"MCP-" + b"x" * 76):
        assert extract(with_piece("png", png_chunk(b"tEXt", key + b"\0" + b"x" * 2_000_000))) == {}
    together = b"".join(png_chunk(b"tEXt", b"MCP-%d\0" % number + b"x" * 300_000) for number in range(9))
    assert sum(map(len, extract(with_piece("png", together)).values())) < 1 << 20
    for label in ({"MCP-Prompt": "x" * 2_000_000}, {"MCP-" + "x" * 76: "x"}):
        block = Image.Exif()
        block.get_ifd(0x8769)[0x9286] = b"ASCII\0\0\0" + json.dumps(label).encode()
        assert extract(with_options("webp", exif=block.tobytes())) == {}


@pytest.mark.parametrize("kind", KINDS)
def test_entities_in_a_label_are_not_expanded(kind: str) -> None:
    entity = b'<!DOCTYPE x [<!ENTITY a "aaaaaaaaaa"><!ENTITY b "&a;&a;&a;&a;">]>'
    ours = b'<r:Description r:about="" xmlns:i="urn:imaged:provenance:1" i:MCP-Tool="x"><i:MCP-Prompt>&b;</i:MCP-Prompt>'
    packet = entity + FOREIGN_XMP.replace(b"</r:RDF>", ours + b"</r:Description></r:RDF>")
    assert extract(with_piece(kind, xmp_piece(kind, packet))) == {}


@pytest.mark.parametrize("kind", KINDS)
def test_a_label_that_is_written_twice_says_the_newer_thing(kind: str) -> None:
    once = embed(picture(kind), provenance("A first fox"), "standard")
    twice = embed(once, provenance("Another fox"), "standard")
    assert extract(twice)["MCP-Prompt"] == "Another fox"
    assert twice.count(b"<Iptc4xmpExt:DigitalSourceType>") == 1


@settings(max_examples=300, deadline=None)
@given(st.sampled_from(KINDS), st.lists(st.tuples(st.integers(0, 10**6), st.integers(0, 255)), max_size=6))
def test_a_damaged_label_is_read_without_a_crash(kind: str, changes: list[tuple[int, int]]) -> None:
    data = bytearray(FULL_LABELS[kind])
    for place, value in changes:
        data[place % len(data)] = value
    with contextlib.suppress(BadPicture):
        extract(bytes(data))
        has_credentials(bytes(data))
        embed(bytes(data), provenance(), "full")


FULL_LABELS = {
    "png": embed(with_piece("png", CREDENTIALS["png"]), provenance(JAPANESE), "full"),
    "jpeg": embed(with_piece("jpeg", extended(EXTENSION)), provenance(JAPANESE), "full"),
    "webp": embed(with_piece("webp", CREDENTIALS["webp"]), provenance(JAPANESE), "full"),
}
