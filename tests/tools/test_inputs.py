"""Nothing outside the roots is read by any name, and what is inside is found by every name it has."""

import contextlib
import errno
import os
import socket
import threading
import unicodedata
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tools import inputs
from tools.errors import FileFailed, Refused
from tools.inputs import Listing, listing, visible

FOX = b"fox, the user's own"
CANARY = b"CANARY: nobody may read this"
ARGUMENT = "reference_image_path"


@pytest.fixture
def tree(tmp_path: Path) -> Iterator[Path]:
    """Two roots among neighbours, with everything in the first that is no plain file of its own."""
    outside, root = tmp_path / "outside", tmp_path / "root"
    for folder in (outside, root / "sub", root / "folder.png", tmp_path / "second", tmp_path / "root_1"):
        folder.mkdir(parents=True)
    (outside / "canary.png").write_bytes(CANARY)
    (tmp_path / "root_1" / "canary.png").write_bytes(CANARY)
    for place in (root / "fox.png", root / "sub" / "fox.png", root / "-fox .png", tmp_path / "second" / "other.png"):
        place.write_bytes(FOX)
    (root / "link").symlink_to(outside)
    (root / "inner").symlink_to(root / "sub")
    (root / "link.png").symlink_to(outside / "canary.png")
    (root / "own-link.png").symlink_to(root / "fox.png")
    (root / "dangling.png").symlink_to(outside / "nothing.png")
    (root / "loop.png").symlink_to(root / "loop.png")
    (root / "device.png").symlink_to("/dev/zero")
    os.mkfifo(root / "fifo.png")
    with socket.socket(socket.AF_UNIX) as bound:
        here = os.open(root, os.O_RDONLY)
        bound.bind(f"/proc/self/fd/{here}/socket.png" if Path("/proc/self/fd").exists() else str(root / "socket.png"))
        os.close(here)
        yield tmp_path


def read(argument: str, roots: Sequence[Path], *, name: str = ARGUMENT, bytes_max: int = 1000) -> bytes:
    return inputs.read(argument, roots, name=name, bytes_max=bytes_max)


def refusal(argument: str, roots: Sequence[Path], *, name: str = ARGUMENT, bytes_max: int = 1000) -> Refused:
    with pytest.raises(Refused) as caught:
        read(argument, roots, name=name, bytes_max=bytes_max)
    assert caught.value.argument == name
    assert name in str(caught.value) and str(caught.value).endswith(".") and len(str(caught.value)) < 2000
    assert CANARY.decode() not in str(caught.value)
    return caught.value


@pytest.mark.parametrize(
    ("argument", "code"),
    [
        ("", "path_is_folder"),
        (".", "path_is_folder"),
        ("/", "path_outside"),
        ("sub", "path_is_folder"),
        ("sub/", "path_is_folder"),
        ("fox.png/", "path_is_folder"),
        ("fox.png/.", "path_is_folder"),
        ("folder.png", "path_is_folder"),
        ("{root}", "path_is_folder"),
        ("..", "path_dotdot"),
        ("../outside/canary.png", "path_dotdot"),
        ("sub/../fox.png", "path_dotdot"),
        ("{root}/../outside/canary.png", "path_dotdot"),
        ("~/../etc/passwd", "path_dotdot"),
        ("/etc/passwd", "path_outside"),
        ("//etc/passwd", "path_outside"),
        ("{outside}/canary.png", "path_outside"),
        ("{root}_1/canary.png", "path_outside"),
        ("{root}fox.png", "path_outside"),
        ("/tmp/canary.png", "path_outside"),
        ("/tmpcanary.png", "path_outside"),
        ("/var/tmp/canary.png", "path_outside"),
        ("/proc/self/environ", "path_outside"),
        ("/dev/fd/0", "path_outside"),
        ("/dev/stdin", "path_outside"),
        ("~/.ssh/id_rsa", "path_outside"),
        ("~", "path_user"),
        ("~root/x.png", "path_user"),
        ("~x.png", "path_user"),
        ("link/canary.png", "path_link"),
        ("inner/fox.png", "path_link"),
        ("link.png", "path_link"),
        ("own-link.png", "path_link"),
        ("dangling.png", "path_link"),
        ("loop.png", "path_link"),
        ("loop.png/x.png", "path_link"),
        ("device.png", "path_link"),
        ("{root}/link/canary.png", "path_link"),
        ("fifo.png", "not_a_file"),
        ("socket.png", "not_a_file"),
        ("nothing.png", "not_there"),
        ("fox.png/x.png", "not_there"),
        ("nothing/x.png", "not_there"),
        ("漢" * 83 + "é.png", "not_there"),  # 255 bytes of which decomposed ones are too many
        ("https://example.com/fox.png", "path_url"),
        ("file:///etc/passwd", "path_url"),
        ("FILE://{root}/fox.png", "path_url"),
        ("data:image/png;base64," + "A" * 100_000, "path_url"),
        ("C:\\Users\\fox.png", "path_backslash"),
        ("\\\\server\\share\\fox.png", "path_backslash"),
        ("\\\\?\\C:\\fox.png", "path_backslash"),
        ("sub\\fox.png", "path_backslash"),
        ("C:/fox.png", "path_drive"),
        ("c:fox.png", "path_drive"),
        ("fox\0.png", "path_control"),
        ("fox.png\0", "path_control"),
        ("fox\n.png", "path_control"),
        ("fox\x1b[2J.png", "path_control"),
        ("fox\x85.png", "path_control"),
        ("fox\u2028.png", "path_control"),
        ("fox\udcff.png", "path_control"),
        ("x" * 256, "path_too_long"),
        ("漢" * 86, "path_too_long"),
        ("a/" * 501, "path_too_long"),
        ("a/" * 16 + "x.png", "path_too_deep"),
        ("/mnt/user-data/uploads/fox.png", "path_virtual"),
        ("/mnt/user-data", "path_virtual"),
        ("/mnt/transcripts/2026.txt", "path_virtual"),
    ],
)
def test_what_may_not_be_read_is_refused_with_its_code(argument: str, code: str, tree: Path) -> None:
    roots = [tree / "root", tree / "second"]
    argument = argument.replace("{root}", str(tree / "root")).replace("{outside}", str(tree / "outside"))
    assert refusal(argument, roots).code == code
    assert refusal(argument, roots, name="image_path").code == code


def test_what_lies_below_a_root_is_read_by_every_way_of_writing_it(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tree))
    alias = tree / "alias"
    alias.symlink_to(tree / "root")
    roots = [alias, tree / "second"]
    for argument in (
        "fox.png", "./fox.png", ".//sub/./fox.png", "-fox .png", "other.png", "~/alias/fox.png", "~/root/fox.png",
        "~/second/other.png", f"{tree}/alias/fox.png", f"{tree}/root/sub/fox.png", f"//{tree}//second/./other.png",
    ):  # fmt: skip
        assert read(argument, roots) == FOX, argument


def test_odd_names_that_exist_are_read(tree: Path) -> None:
    for name in (
        ".hidden",
        " lead.png",
        "con.png",
        "ab:c*?.png",
        "fox\u202egnp.png",
        "fox\u200b.png",
        "x.txt",
        "trail.",
        "狐🦊.png",
    ):
        (tree / "root" / name).write_bytes(FOX)
        assert read(name, [tree / "root"]) == FOX, name
    (tree / "root" / "~x.png").write_bytes(FOX)
    assert read("./~x.png", [tree / "root"]) == FOX


def test_the_first_root_that_has_the_name_wins(tree: Path) -> None:
    (tree / "second" / "fox.png").write_bytes(b"another fox")
    assert read("fox.png", [tree / "second", tree / "root"]) == b"another fox"
    assert read("fox.png", [tree / "missing", tree / "root" / "fox.png", tree / "root"]) == FOX
    assert read(f"{tree}/second/other.png", [tree / "root", tree, tree / "second"]) == FOX


def test_a_link_in_the_first_root_is_not_passed_over_for_the_second(tree: Path) -> None:
    (tree / "second" / "link.png").write_bytes(FOX)
    assert refusal("link.png", [tree / "root", tree / "second"]).code == "path_link"


@pytest.mark.parametrize("stored", ["NFC", "NFD"])
@pytest.mark.parametrize("asked", ["NFC", "NFD"])
def test_a_name_is_found_composed_and_decomposed(asked: str, stored: str, tree: Path) -> None:
    folder = tree / unicodedata.normalize(stored, "Ferié") / unicodedata.normalize(stored, "été")
    folder.mkdir(parents=True)
    (folder / unicodedata.normalize(stored, "がぎ.png")).write_bytes(FOX)
    argument = unicodedata.normalize(asked, "été/がぎ.png")
    assert read(argument, [folder.parent]) == FOX
    assert read(unicodedata.normalize(asked, f"{folder}/がぎ.png"), [folder.parent]) == FOX
    assert listing(unicodedata.normalize(asked, "été"), [folder.parent]).folder == folder


def test_the_exact_name_comes_before_its_other_spellings(tree: Path) -> None:
    for form in ("NFC", "NFD"):
        (tree / "root" / unicodedata.normalize(form, "é.png")).write_bytes(form.encode())
    for form in ("NFC", "NFD"):
        assert read(unicodedata.normalize(form, "é.png"), [tree / "root"]) == form.encode()


def test_no_other_spelling_of_a_character_is_a_step_in_a_path() -> None:
    steps = set("./\\\0~")
    for number in (*range(0xD800), *range(0xE000, 0x110000)):
        character = chr(number)
        if character not in steps:
            assert not steps & set(unicodedata.normalize("NFC", character) + unicodedata.normalize("NFD", character)), number


def test_a_file_may_have_as_many_bytes_as_allowed_and_no_more(tree: Path) -> None:
    assert read("fox.png", [tree / "root"], bytes_max=len(FOX)) == FOX
    caught = refusal("fox.png", [tree / "root"], bytes_max=len(FOX) - 1)
    assert caught.code == "too_large" and f"{len(FOX)} bytes" in str(caught) and f"{len(FOX) - 1} are allowed" in str(caught)


def test_a_file_that_grows_while_it_is_read_is_not_read_for_ever(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tree / "root" / "fox.png"
    os_read = os.read

    def read_and_grow(file: int, count: int) -> bytes:
        with path.open("ab") as more:
            more.write(b"more and more")
        return os_read(file, count)

    monkeypatch.setattr(os, "read", read_and_grow)
    monkeypatch.setattr(inputs, "READ_BYTES", 8)
    caught = refusal("fox.png", [tree / "root"], bytes_max=100)
    assert caught.code == "too_large" and "grew to more than 100 bytes" in str(caught)
    assert path.stat().st_size < 1000


def test_a_second_name_of_a_file_is_read_if_the_file_is_ones_own(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tree / "root" / "twin.png").hardlink_to(tree / "root" / "fox.png")
    assert read("twin.png", [tree / "root"]) == FOX
    somebody_else = os.geteuid() + 1
    monkeypatch.setattr(os, "geteuid", lambda: somebody_else)
    assert refusal("twin.png", [tree / "root"]).code == "path_link"
    assert read("sub/fox.png", [tree / "root"]) == FOX  # another's file, but its only name


@pytest.mark.parametrize(
    ("number", "code", "kind"),
    [(errno.EACCES, "not_permitted", Refused), (errno.EPERM, "not_permitted", Refused), (errno.EIO, "io_error", FileFailed)],
)
def test_what_the_system_says_is_told_without_its_words_on_paths(
    number: int, code: str, kind: type[Refused], tree: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*args: object, **kwargs: object) -> int:
        raise OSError(number, os.strerror(number), "/somebody/elses/secret")

    monkeypatch.setattr(os, "open", broken)
    with pytest.raises(kind) as caught:
        read("fox.png", [tree / "root"])
    assert caught.value.code == code and "fox.png" in str(caught.value)
    assert "secret" not in str(caught.value) and "Errno" not in str(caught.value)
    with pytest.raises(kind):
        listing("sub", [tree / "root"])


def test_the_sentences_say_what_to_do_next(tree: Path) -> None:
    roots = [tree / "root", tree / "second"]
    for argument in ("/etc/passwd", "/mnt/user-data/uploads/x.png", "nothing.png", "https://x.example/a.png"):
        assert all(str(root) in str(refusal(argument, roots)) for root in roots)
    outside = str(refusal("/etc/passwd", roots))
    assert "OPENAI_IMAGE_INPUT_DIR" in outside and "“:”" in outside
    assert "reference_image_base64" in str(refusal("/mnt/user-data/uploads/x.png", roots))
    assert "mask_image_base64" in str(refusal("/mnt/user-data/uploads/x.png", roots, name="mask_image_path"))
    assert "base64" not in str(refusal("/mnt/user-data/uploads/x.png", roots, name="image_path"))


def test_a_home_that_is_not_known_is_said(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def nobody() -> Path:
        raise RuntimeError("no home")

    monkeypatch.setattr(Path, "home", nobody)
    assert refusal("~/fox.png", [tree / "root"]).code == "path_user"


@pytest.mark.parametrize("hidden", ["\u202e", "\u200b", "\u3164", "\ufe0f", "\U000e0041", "\U000e0101", "\u00ad", "\u00a0"])
def test_what_the_eye_would_miss_is_shown(hidden: str, tree: Path) -> None:
    sentence = str(refusal(f"fox{hidden}gnp.exe", [tree / "root"]))
    assert hidden not in sentence and hidden.encode("unicode_escape").decode() in sentence
    assert visible("狐 fox") == "'狐 fox'"
    assert len(visible("x" * 10_000)) < 400


PARTS = st.one_of(
    st.sampled_from(
        ["..", ".", "", "~", "link", "inner", "link.png", "sub", "fox.png", "fifo.png", "outside", "root", "canary.png", "%2e%2e",
         "．．", "‥", "..\0", "\\..", "\u202e..", "socket.png", "device.png", "loop.png", "dangling.png", "etc", "passwd", "tmp"]
    ),
    st.text(max_size=8),
)  # fmt: skip


@settings(max_examples=1500, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    start=st.sampled_from(["", "/", "//", "~/", "{tree}/", "{tree}/root/", "./"]),
    parts=st.lists(PARTS, max_size=6),
)
def test_no_string_reads_anything_outside(start: str, parts: list[str], tree: Path) -> None:
    argument = (start + "/".join(parts)).replace("{tree}", str(tree))
    try:
        assert read(argument, [tree / "root", tree / "second"]) == FOX
    except Refused as exc:
        assert CANARY.decode() not in str(exc)
    try:
        listed = listing(argument, [tree / "root", tree / "second"])
        assert listed.folder.resolve().is_relative_to(tree / "root") or listed.folder == tree / "second"
        assert all(not entry.path.is_symlink() and entry.path.parent == listed.folder for entry in listed.entries)
    except Refused as exc:
        assert exc.argument == "directory"


def test_a_folder_swapped_for_a_link_at_any_moment_leads_nowhere_else(tree: Path) -> None:
    root, over = tree / "root", threading.Event()
    (tree / "outside" / "fox.png").write_bytes(CANARY)
    (root / "away").symlink_to(tree / "outside")

    def swap() -> None:
        while not over.is_set():
            (root / "sub").rename(root / "aside")
            (root / "away").rename(root / "sub")
            (root / "sub").rename(root / "away")
            (root / "aside").rename(root / "sub")

    swapper = threading.Thread(target=swap)
    swapper.start()
    outcomes = set()
    try:
        for attempt in range(100_000):
            if attempt >= 2000 and {FOX, b"path_link"} <= outcomes:
                break
            try:
                outcomes.add(read("sub/fox.png", [root]))
                listed = listing("sub", [root])
                outcomes.add(b"listed" if [entry.path.name for entry in listed.entries] == ["fox.png"] else b"something else")
            except Refused as exc:
                assert exc.code in ("path_link", "not_there")
                outcomes.add(exc.code.encode())
    finally:
        over.set()
        swapper.join(10)
    assert {FOX, b"path_link"} <= outcomes <= {FOX, b"path_link", b"not_there", b"listed"}


@pytest.mark.parametrize("kind", ["link", "fifo"])
def test_a_file_swapped_between_look_and_open_is_not_followed(kind: str, tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tree / "root" / "sub" / "fox.png"
    os_stat = os.stat

    def stat_and_swap(name: str, **kwargs: object) -> os.stat_result:
        found = os_stat(name, **kwargs)  # type: ignore[call-overload]
        if name == "fox.png":
            path.unlink()
            path.symlink_to(tree / "outside" / "canary.png") if kind == "link" else os.mkfifo(path)
        return found  # type: ignore[no-any-return]

    monkeypatch.setattr(os, "stat", stat_and_swap)
    assert refusal("sub/fox.png", [tree / "root"]).code == ("path_link" if kind == "link" else "not_a_file")


def test_no_descriptor_is_left_open(tree: Path) -> None:
    def descriptors() -> int:
        return len(list(Path("/dev/fd").iterdir()))

    before = descriptors()
    for argument in ("sub/fox.png", "link/canary.png", "nothing/x.png", "fifo.png", "fox.png/x.png"):
        for ask in (read, listing):
            with contextlib.suppress(Refused):
                ask(argument, [tree / "root", tree / "second"])
    assert descriptors() == before


def test_a_folder_is_listed_newest_first_and_only_its_pictures(tree: Path) -> None:
    folder = tree / "second"
    (folder / "other.png").unlink()
    for age, name in enumerate(["b.PNG", "a.jpg", "c.JPEG", "d.webp", "e.gif", "f.svg"]):
        (folder / name).write_bytes(b"x" * age)
        os.utime(folder / name, (0, 2_000_000_000 - age // 2))
    for name in (".hidden.png", ".png", "x.txt", "png", "x.png.tmp", "two\nlines.png"):
        (folder / name).write_bytes(FOX)
    (folder / b"\xff.png".decode("utf-8", "surrogateescape")).write_bytes(FOX)
    listed = listing(str(folder), [tree / "root", folder])
    assert [entry.path for entry in listed.entries] == [
        folder / name for name in ("a.jpg", "b.PNG", "c.JPEG", "d.webp", "e.gif", "f.svg")
    ]
    assert [entry.size_bytes for entry in listed.entries] == [1, 0, 2, 3, 4, 5]
    assert listed.folder == folder and listed.entries[0].modified == datetime(2033, 5, 18, 3, 33, 20, tzinfo=UTC)


@pytest.mark.parametrize("argument", [None, "", ".", "./", "{root}", "~/root"])
def test_links_pipes_folders_and_what_cannot_be_seen_are_left_out(
    argument: str | None, tree: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tree))
    os_access = os.access
    (tree / "root" / "secret.png").write_bytes(FOX)
    monkeypatch.setattr(os, "access", lambda name, *args, **kwargs: name != "secret.png" and os_access(name, *args, **kwargs))
    listed = listing(argument and argument.replace("{root}", str(tree / "root")), [tree / "root", tree / "second"])
    assert {entry.path.name for entry in listed.entries} == {"fox.png", "-fox .png"}


@pytest.mark.parametrize(
    ("argument", "code"),
    [
        ("link", "path_link"), ("sub/../sub", "path_dotdot"), ("/etc", "path_outside"), ("{tree}", "path_outside"),
        ("nothing", "not_there"), ("fox.png", "not_there"), ("~", "path_user"), ("http://x.example", "path_url"),
        ("a\\b", "path_backslash"), ("a\nb", "path_control"), ("/mnt/user-data", "path_virtual"),
    ],
)  # fmt: skip
def test_a_folder_elsewhere_is_not_listed(argument: str, code: str, tree: Path) -> None:
    with pytest.raises(Refused) as caught:
        listing(argument.replace("{tree}", str(tree)), [tree / "root", tree / "second"])
    assert (caught.value.code, caught.value.argument) == (code, "directory")


def test_an_output_folder_that_was_never_made_holds_nothing(tree: Path) -> None:
    for argument in (None, "", "."):
        assert listing(argument, [tree / "missing", tree / "root"]) == Listing(tree / "missing", ())
    with pytest.raises(Refused, match="There is no folder"):
        listing(str(tree / "missing"), [tree / "missing", tree / "root"])


@pytest.mark.parametrize("moment", [-(2**40), 2**40])
def test_a_time_that_no_calendar_holds_is_told_as_the_nearest(moment: int, tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert inputs._moment(moment).year == (1 if moment < 0 else 9999)


def test_ten_thousand_pictures_are_listed_without_opening_one(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    many = tree / "many"
    many.mkdir()
    for number in range(10_000):
        os.close(os.open(many / f"{number}.png", os.O_CREAT | os.O_WRONLY))
    opened = []
    os_open = os.open
    monkeypatch.setattr(os, "open", lambda *args, **kwargs: opened.append(args[0]) or os_open(*args, **kwargs))  # type: ignore[func-returns-value]
    assert len(listing(None, [many]).entries) == 10_000
    assert opened == [many]
