"""Nothing is written outside the root, nothing is ever overwritten, and what is said to be there is there."""

import errno
import os
import secrets
import stat
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from eventlog.disk import Disk
from eventlog.values import Sha256, digest
from tools.errors import FileFailed, Refused
from tools.files import TEMPORARY, OutputRoot, Store
from tools.names import parse_output

DATA = b"\x89PNG not really"


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A root among neighbours, with links out of it."""
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "canary.png").write_bytes(b"canary")
    (tmp_path / "root").mkdir()
    (tmp_path / "root_1").mkdir()
    (tmp_path / "root" / "link").symlink_to(tmp_path / "outside")
    (tmp_path / "root" / "dangling.png").symlink_to(tmp_path / "outside" / "made.png")
    (tmp_path / "root" / "canary.png").symlink_to(tmp_path / "outside" / "canary.png")
    (tmp_path / "root" / "folder.png").mkdir()
    (tmp_path / "root" / "taken.png").write_bytes(b"MY PRECIOUS FILE")
    os.mkfifo(tmp_path / "root" / "fifo.png")
    return tmp_path


def snapshot(tree: Path) -> dict[str, object]:
    """Everything but what is new below the root."""
    found: dict[str, object] = {}
    for path in sorted(tree.rglob("*")):
        inside = path.is_relative_to(tree / "root") and path.name not in ("taken.png", "canary.png", "dangling.png")
        if not inside and path.parent.resolve() == path.parent:
            found[str(path)] = path.read_bytes() if path.is_file() else str(stat.S_IFMT(path.lstat().st_mode))
    return found


def place(root: Path, argument: str, *, any_path: bool = False, adopt: bool = False, token: str = "") -> Path:
    with OutputRoot.open(root, any_path=any_path) as opened:
        name = opened.parse(argument, output_format="png")
        return opened.place(name, DATA, token=token or secrets.token_hex(4), adopt=adopt)


ATTACKS = [
    "", ".", "./", "/", "sub/", "sub/.", "..",
    "../x.png", "a/../../x.png", "a/../x.png", "x/..", "....//x.png/..", "~", "~/",
    "~root/x.png", "~nobody/x.png", "/etc/cron.d/x.png", "/tmp/x.png", "//etc/x.png", "/proc/self/fd/1", "/dev/null",
    "C:\\x.png", "\\\\server\\x.png", "a\\..\\..\\x.png", "http://evil/x.png",
    "file:///etc/x.png", "x\0.png", "a\nb.png", "a\rb.png",
    "a\x1b[31m.png", "a\u202epng.exe", "a\u200b.png", "a\u2028.png",
    "a\ufeff.png", "a\U000e0041.png", "a\ufe0f.png", "a\ue000.png",
    "a\ufdd0.png", "con", "NUL.png", "com1.png", "COM¹.png",
    "lpt9.txt", "a:b.png", "a<b.png", 'a"b.png', "a|b.png", "a?b.png", "a*.png",
    ".hidden.png", "-rf.png", " lead.png", "sub/.ssh/x.png", "trail .", "a/b /x.png", "a./x.png", "x" * 300, "漢" * 70,
    "/".join("d" * 17) + "/x.png", "a/" * 600 + "x.png",
    "/mnt/user-data/outputs/x.png", "/mnt/transcripts/x.png", "link/x.png",
    "link/../x.png", "taken.png/x.png", "fifo.png/x.png", "canary.png/x",
]  # fmt: skip


@pytest.mark.parametrize("argument", ATTACKS)
def test_an_attack_is_refused_with_a_code_and_touches_nothing(argument: str, tree: Path) -> None:
    before = snapshot(tree)
    with pytest.raises(Refused) as caught:
        place(tree / "root", argument)
    assert caught.value.code.startswith("path_") and len(str(caught.value)) < 400 + len(argument)
    assert caught.value.argument == "output_path"
    assert snapshot(tree) == before


@pytest.mark.parametrize("argument", ["/{tree}_1/x.png", "/{tree}/../outside/x.png", "/{outside}/x.png", "/{root}", "/{root}/"])
def test_absolute_paths_beside_the_root_are_outside(argument: str, tree: Path) -> None:
    names = {"tree": str(tree / "root")[1:], "outside": str(tree / "outside")[1:], "root": str(tree / "root")[1:]}
    before = snapshot(tree)
    with pytest.raises(Refused):
        place(tree / "root", argument.format(**names))
    assert snapshot(tree) == before


@pytest.mark.parametrize(
    ("argument", "expected"),
    [
        ("x.png", "x.png"),
        ("x", "x.png"),
        ("x.jpg", "x.png"),
        ("x.PNG", "x.PNG"),
        ("v1.2/pic", "v1.2/pic.png"),
        ("a.b.c", "a.b.c.png"),
        ("./a//b/x.png", "a/b/x.png"),
        ("京都/雨.png", "京都/雨.png"),
        ("cafe\u0301.png", "caf\u00e9.png"),
        ("taken.png", "taken_1.png"),
        ("dangling.png", "dangling_1.png"),
        ("canary.png", "canary_1.png"),
        ("folder.png", "folder_1.png"),
        ("fifo.png", "fifo_1.png"),
    ],
)
def test_a_name_lands_below_the_root_and_a_taken_one_gets_a_number(argument: str, expected: str, tree: Path) -> None:
    before = snapshot(tree)
    path = place(tree / "root", argument)
    assert path == tree / "root" / expected
    assert path.read_bytes() == DATA and not path.is_symlink()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert snapshot(tree) == before


def test_absolute_paths_inside_the_root_are_taken_as_configured_or_as_resolved(tree: Path) -> None:
    alias = tree / "alias"
    alias.symlink_to(tree / "root")
    for base in (alias, tree / "root"):
        assert place(alias, f"{base}/sub/x.png").read_bytes() == DATA


def test_a_home_path_is_expanded(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tree))
    assert place(tree / "root", "~/root/x.png") == tree / "root" / "x.png"


def test_any_path_goes_elsewhere_but_still_never_overwrites_or_climbs(tree: Path) -> None:
    outside = tree / "outside"
    assert place(tree / "root", f"{outside}/new/x.png", any_path=True) == outside / "new" / "x.png"
    assert place(tree / "root", f"{outside}/canary.png", any_path=True) == outside / "canary_1.png"
    assert (outside / "canary.png").read_bytes() == b"canary"
    with pytest.raises(Refused):
        place(tree / "root", f"{outside}/../x.png", any_path=True)


def test_numbered_pictures_keep_their_folder_and_never_replace(tree: Path) -> None:
    root = tree / "root"
    (root / "v1.2").mkdir()
    (root / "v1.2" / "keep_1.png").write_bytes(b"MY PRECIOUS FILE")
    with OutputRoot.open(root, any_path=False) as opened:
        name = opened.parse("v1.2/keep", output_format="png")
        paths = [opened.place(name.numbered(n), DATA, token=str(n)) for n in (1, 2)]
    assert [path.name for path in paths] == ["keep_1_1.png", "keep_2.png"]
    assert (root / "v1.2" / "keep_1.png").read_bytes() == b"MY PRECIOUS FILE"


def test_fifty_at_once_with_one_name_are_fifty_files(tmp_path: Path) -> None:
    paths: list[Path] = []
    threads = [threading.Thread(target=lambda: paths.append(place(tmp_path / "root", "same.png"))) for _ in range(50)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len(set(paths)) == 50 and all(path.read_bytes() == DATA for path in paths)
    assert len(list((tmp_path / "root").iterdir())) == 50


def test_an_adopted_file_is_the_one_an_earlier_life_wrote(tree: Path) -> None:
    root = tree / "root"
    first = place(root, "taken.png")
    assert place(root, "taken.png", adopt=True) == first
    assert place(root, "taken.png") != first
    assert not [p for p in root.iterdir() if p.name.startswith(TEMPORARY)]


def test_what_an_earlier_life_left_half_written_is_removed_by_the_next(tmp_path: Path) -> None:
    (tmp_path / f"{TEMPORARY}job-1.tmp").write_bytes(b"half")
    assert place(tmp_path, "x.png", token="job-1").read_bytes() == DATA
    assert [path.name for path in tmp_path.iterdir()] == ["x.png"]


class FailingDisk(Disk):
    """Fails at one call by name."""

    def __init__(self, call: str, number: int) -> None:
        self.call = call
        self.number = number

    def pwrite(self, fd: int, data: bytes, offset: int) -> None:
        self._fail("pwrite")
        super().pwrite(fd, data, offset)

    def sync(self, fd: int) -> None:
        self._fail("sync")
        super().sync(fd)

    def sync_directory(self, directory: int) -> None:
        self._fail("sync_directory")
        super().sync_directory(directory)

    def _fail(self, call: str) -> None:
        if call == self.call:
            raise OSError(self.number, os.strerror(self.number))


@pytest.mark.parametrize("call", ["pwrite", "sync"])
@pytest.mark.parametrize(
    ("number", "code"), [(errno.ENOSPC, "no_space"), (errno.EIO, "io_error"), (errno.EROFS, "not_permitted")]
)
def test_a_disk_that_says_no_leaves_nothing_behind(call: str, number: int, code: str, tmp_path: Path) -> None:
    with OutputRoot.open(tmp_path / "root", any_path=False) as opened:
        opened._disk = FailingDisk(call, number)
        with pytest.raises(FileFailed) as caught:
            opened.place(opened.parse("x.png", output_format="png"), DATA, token="t")
    assert caught.value.code == code and str(tmp_path) in str(caught.value)
    assert list((tmp_path / "root").iterdir()) == []


@settings(max_examples=300)
@given(argument=st.text(alphabet=st.sampled_from("ab./~\\-_: \u202e京é\0\n"), max_size=12) | st.text(max_size=30))
def test_no_text_reaches_outside_the_root(argument: str, shared_tree: Path) -> None:
    before = snapshot(shared_tree)
    try:
        path = place(shared_tree / "root", argument)
    except (Refused, FileFailed):
        pass
    else:
        assert path.is_relative_to(shared_tree / "root")
    assert snapshot(shared_tree) == before


@pytest.fixture(scope="module")
def shared_tree(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    place_ = tmp_path_factory.mktemp("tree")
    (place_ / "outside").mkdir()
    (place_ / "outside" / "canary.png").write_bytes(b"canary")
    (place_ / "root").mkdir()
    (place_ / "root" / "a").symlink_to(place_ / "outside")
    yield place_


def check(root: Path, argument: str, count: int = 1) -> None:
    OutputRoot.check(root, argument, any_path=False, output_format="png", count=count)


def test_the_check_before_paying_changes_nothing(tmp_path: Path) -> None:
    check(tmp_path / "not" / "there" / "yet", "sub/x.png")
    assert list(tmp_path.iterdir()) == []


def test_the_check_before_paying_sees_links_files_and_full_disks(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for argument in ("link/x.png", "taken.png/x.png"):
        with pytest.raises(Refused):
            check(tree / "root", argument)
    with pytest.raises(FileFailed, match="not a folder"):
        check(tree / "root" / "taken.png", "x.png")
    monkeypatch.setattr(os, "access", lambda *a, **k: False)
    with pytest.raises(FileFailed, match="cannot be written"):
        check(tree / "root", "x.png")
    monkeypatch.undo()
    monkeypatch.setattr(os, "fstatvfs", lambda fd: os.statvfs_result((4096, 4096, 9, 1, 1, 9, 9, 9, 0, 255)))
    with pytest.raises(FileFailed, match="wanted before a picture is paid for"):
        check(tree / "root", "x.png")


@given(st.text(max_size=60))
def test_what_is_accepted_is_plain_components(argument: str) -> None:
    try:
        name = parse_output(argument, Path("/base/dir"), any_path=False, output_format="webp")
    except Refused:
        return
    for component in (*name.folders, name.candidate(0), name.candidate(7)):
        assert component not in ("", ".", "..") and not set(component) & set('/\\\0:<>"|?*')
    assert name.candidate(0).lower().endswith(".webp") and not name.absolute


def test_the_store_keeps_the_same_bytes_once_and_checks_them(tmp_path: Path) -> None:
    store = Store.open(tmp_path / "store")
    blob = store.put(DATA)
    assert store.put(DATA) == blob and store.get(blob.sha256) == DATA
    assert store.path(blob.sha256).parent.name == blob.sha256[:2]
    assert stat.S_IMODE(store.path(blob.sha256).stat().st_mode) == 0o600
    assert stat.S_IMODE((tmp_path / "store").stat().st_mode) == 0o700
    store.path(blob.sha256).write_bytes(b"rot")
    with pytest.raises(FileFailed, match="damaged"):
        store.get(blob.sha256)
    assert store.put(DATA) == blob and store.get(blob.sha256) == DATA, "damage heals when the bytes come again"
    with pytest.raises(FileFailed, match="no picture"):
        store.get(Sha256("0" * 64))


class OrderedDisk(Disk):
    """Notes what was made durable, in which order."""

    def __init__(self) -> None:
        self.calls: list[str] = []

    def pwrite(self, fd: int, data: bytes, offset: int) -> None:
        self.calls.append("write")
        super().pwrite(fd, data, offset)

    def sync(self, fd: int) -> None:
        self.calls.append("sync")
        super().sync(fd)

    def replace(self, directory: int, old: str, new: str) -> None:
        self.calls.append("name")
        super().replace(directory, old, new)

    def sync_directory(self, directory: int) -> None:
        self.calls.append("sync names")
        super().sync_directory(directory)


def test_a_blob_is_synced_before_it_has_its_name_and_the_name_before_it_is_told(tmp_path: Path) -> None:
    store = Store.open(tmp_path / "store", disk := OrderedDisk())
    store.put(b"first in this folder")
    disk.calls.clear()
    store.spool("request-1", b"{}")
    assert disk.calls == ["write", "sync", "name", "sync names"]
    assert Store.open(tmp_path / "store").spooled("request-1") == b"{}"
    store.unspool("request-1")
    store.unspool("request-1")
    assert store.spooled("request-1") is None


def test_what_a_dead_process_left_half_written_is_swept(tmp_path: Path) -> None:
    Store.open(tmp_path / "store").put(DATA)
    left = tmp_path / "store" / digest(DATA)[:2] / f"{TEMPORARY}dead.tmp"
    also = tmp_path / "store" / "spool" / f"{TEMPORARY}dead.tmp"
    left.write_bytes(b"half")
    also.write_bytes(b"half")
    store = Store.open(tmp_path / "store")
    assert not also.exists()
    store.put(DATA)
    assert not left.exists()
