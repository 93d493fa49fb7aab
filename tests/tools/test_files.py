"""Nothing is written outside the root, nothing is ever overwritten, and what is said to be there is there."""

import errno
import os
import random
import secrets
import stat
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from eventlog.disk import Disk
from eventlog.values import Sha256, digest
from tests.eventlog.disks import PowerCut, SimulatedDisk
from tools.errors import FileFailed, Refused
from tools.files import TEMPORARY, OutputRoot
from tools.names import parse_output
from tools.store import Store

ROOT = Path(__file__).resolve().parents[2]
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
    "a\ufdd0.png", "a\U0010ffff.png", "a\u3164.png", "a\U000e0101.png", "a\u034f.png", "\u3000x.png", "a\u3000/x.png",
    "con .png", "con", "NUL.png", "com1.png", "COM¹.png",
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
        ("狐🦊.png", "狐🦊.png"),
        ("new \U0001fae8 emoji.png", "new \U0001fae8 emoji.png"),  # Unicode 15, unassigned for Python 3.11
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


def test_any_path_follows_the_links_that_the_user_has_in_parents(tree: Path) -> None:
    (tree / "shelf").symlink_to(tree / "outside")
    assert place(tree / "root", f"{tree}/shelf/new/x.png", any_path=True).read_bytes() == DATA
    assert (tree / "outside" / "new" / "x.png").read_bytes() == DATA


@pytest.mark.parametrize("argument", ["a/../x.png", "~root/x.png", "x\0.png", "http://e/x.png", "/tmp/.hidden.png", "a\\b.png"])
def test_any_path_keeps_every_rule_about_text(argument: str, tree: Path) -> None:
    before = snapshot(tree)
    with pytest.raises(Refused):
        place(tree / "root", argument, any_path=True)
    assert snapshot(tree) == before


@pytest.mark.parametrize("name", ["漢" * 65, "é" * 98, "x" * 196, "🦊" * 49])
def test_the_longest_names_are_counted_in_bytes_and_leave_room_for_a_number(name: str, tmp_path: Path) -> None:
    paths = [place(tmp_path, name) for _ in range(11)]
    assert len(set(paths)) == 11 and paths[-1].name == f"{name}_10.png"
    with pytest.raises(Refused) as caught:
        place(tmp_path, name + "漢" * 3)
    assert caught.value.code == "path_too_long"


def test_both_spellings_of_an_accent_are_one_name(tmp_path: Path) -> None:
    assert [place(tmp_path, name).name for name in ("caf\u00e9.png", "cafe\u0301.png")] == ["caf\u00e9.png", "caf\u00e9_1.png"]


def test_a_folder_swapped_for_a_link_between_check_and_place_is_not_followed(tree: Path) -> None:
    root = tree / "root"
    (root / "sub").mkdir()
    before = snapshot(tree)
    check(root, "sub/x.png")
    with OutputRoot.open(root, any_path=False) as opened:
        name = opened.parse("sub/x.png", output_format="png")
        (root / "sub").rmdir()
        (root / "sub").symlink_to(tree / "outside")
        with pytest.raises(Refused) as caught:
            opened.place(name, DATA, token="t")
    assert caught.value.code == "path_link" and snapshot(tree) == before


def test_a_root_renamed_while_open_still_gets_its_picture_and_its_successor_none(tree: Path) -> None:
    root = tree / "root"
    with OutputRoot.open(root, any_path=False) as opened:
        root.rename(tree / "moved")
        root.symlink_to(tree / "outside")
        opened.place(opened.parse("x.png", output_format="png"), DATA, token="t")
    assert (tree / "moved" / "x.png").read_bytes() == DATA and not (tree / "outside" / "x.png").exists()


def test_new_folders_are_for_the_owner_alone(tmp_path: Path) -> None:
    path = place(tmp_path / "root", "a/b/x.png")
    assert {stat.S_IMODE(folder.stat().st_mode) for folder in (path.parent, path.parent.parent, tmp_path / "root")} == {0o700}


CODES = {
    "../x.png": "path_dotdot", "/etc/x.png": "path_outside", "x\0.png": "path_control", "http://e/x.png": "path_url",
    "x" * 300: "path_too_long", "sub/": "path_is_folder", "a\\b.png": "path_backslash", "~root/x.png": "path_user",
    ".x.png": "path_leading", "trail .": "path_trailing", "a?.png": "path_character", "con.png": "path_reserved",
    "d/" * 17 + "x.png": "path_too_deep", "/mnt/user-data/outputs/x.png": "path_virtual", "link/x.png": "path_link",
}  # fmt: skip


@pytest.mark.parametrize("argument", CODES)
def test_every_refusal_has_its_own_stable_code(argument: str, tree: Path) -> None:
    with pytest.raises(Refused) as caught:
        place(tree / "root", argument)
    assert caught.value.code == CODES[argument]


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
        super().__init__()
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


def test_the_check_before_paying_sees_links_to_nowhere(tree: Path) -> None:
    (tree / "nowhere").symlink_to(tree / "gone")
    with pytest.raises(FileFailed, match="link to nowhere"):
        check(tree / "nowhere", "x.png")
    with pytest.raises(FileFailed, match="link to nowhere"):
        check(tree / "nowhere" / "sub", "x.png")
    with pytest.raises(Refused):
        OutputRoot.check(tree / "root", f"{tree}/nowhere/x.png", any_path=True, output_format="png", count=1)


@pytest.mark.parametrize("mode", [0o500, 0o300, 0o000])
def test_the_check_before_paying_answers_in_our_words_when_the_system_says_no(mode: int, tree: Path) -> None:
    """In a child that gives up its rights, because root may do anything."""
    (tree / "root" / "closed").mkdir(mode=mode)
    for path in (tree, *tree.parents):
        if path != path.parent and path.stat().st_uid == os.getuid():
            path.chmod(path.stat().st_mode | 0o011)
    program = (
        "import os, sys; from pathlib import Path; from tools.files import OutputRoot; from tools.errors import FileFailed\n"
        "root = Path(sys.argv[1])\n"
        "if os.getuid() == 0: os.setgid(65534); os.setuid(65534)\n"
        "for argument in ('closed/x.png', 'closed/sub/x.png'):\n"
        "    try: OutputRoot.check(root, argument, any_path=False, output_format='png', count=1)\n"
        "    except FileFailed as exc: print(exc.code)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(tree / "root")], capture_output=True, text=True, check=True, timeout=60, cwd=ROOT
    )
    (tree / "root" / "closed").chmod(0o700)
    assert done.stdout.split() == ["not_permitted", "not_permitted"], done.stderr


def test_a_store_without_room_says_so_before_a_picture_is_paid_for(tmp_path: Path) -> None:
    class Full(Disk):
        def free_bytes(self, directory: int) -> int:
            return 64 * 1024 * 1024 * 2 - 1

    store = Store.open(tmp_path / "store", Full())
    store.check_room(1)
    with pytest.raises(FileFailed) as caught:
        store.check_room(2)
    assert caught.value.code == "no_space"


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
        super().__init__()
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

    def rename_new(self, directory: int, old: str, new: str) -> None:
        self.calls.append("name")
        super().rename_new(directory, old, new)

    def sync_directory(self, directory: int) -> None:
        self.calls.append("sync names")
        super().sync_directory(directory)


def test_a_blob_is_synced_before_it_has_its_name_and_the_name_before_it_is_told(tmp_path: Path) -> None:
    store = Store.open(tmp_path / "store", disk := OrderedDisk())
    store.put(b"first in this folder")
    assert disk.calls[-4:] == ["write", "sync", "name", "sync names"]
    disk.calls.clear()
    store.spool("request-1", b"{}")
    assert disk.calls == ["write", "sync", "name", "sync names"]
    assert Store.open(tmp_path / "store").spooled("request-1") == b"{}"
    store.unspool("request-1")
    store.unspool("request-1")
    assert store.spooled("request-1") is None


def test_a_placed_file_is_synced_before_it_has_its_name_and_the_name_before_it_is_told(tmp_path: Path) -> None:
    with OutputRoot.open(tmp_path, any_path=False) as opened:
        opened._disk = disk = OrderedDisk()
        opened.place(opened.parse("x.png", output_format="png"), DATA, token="t")
        assert disk.calls == ["write", "sync", "name", "sync names"]
        disk.calls.clear()
        opened.place(opened.parse("new/x.png", output_format="png"), DATA, token="t")
        assert disk.calls == ["sync names", "write", "sync", "name", "sync names"]


def test_a_spooled_reply_is_written_once_and_never_replaced(tmp_path: Path) -> None:
    store = Store.open(tmp_path / "store")
    store.spool("a-1", b'{"first":1}')
    store.spool("a-1", b'{"first":1}')
    for other in (b'{"other":2}', b"longer than the first one"):
        with pytest.raises(FileFailed, match="left as it is"):
            store.spool("a-1", other)
    assert store.spooled("a-1") == b'{"first":1}'
    assert [path.name for path in (tmp_path / "store" / "spool").iterdir()] == ["a-1.json"]
    assert stat.S_IMODE((tmp_path / "store" / "spool" / "a-1.json").stat().st_mode) == 0o600


@pytest.mark.parametrize("name", ["", ".", "../x", "a/b", "/etc/x", "a\0b", ".hidden", "x" * 300])
def test_a_spool_name_that_is_no_attempt_is_a_bug(name: str, tmp_path: Path) -> None:
    store = Store.open(tmp_path / "store")
    for act in (lambda: store.spool(name, b"{}"), lambda: store.spooled(name), lambda: store.unspool(name)):
        with pytest.raises(AssertionError):
            act()


@pytest.mark.parametrize("sha256", ["", "../outside/canary.png", "/etc/passwd", "A" * 64, "0" * 63, "spool"])
def test_the_store_is_asked_by_digest_only(sha256: str, tmp_path: Path) -> None:
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "canary.png").write_bytes(b"canary")
    store = Store.open(tmp_path / "home" / "store")
    with pytest.raises(FileFailed, match="no picture"):
        store.get(Sha256(sha256))


def test_a_blob_that_is_cut_or_a_link_is_seen(tmp_path: Path) -> None:
    store = Store.open(tmp_path / "store")
    blob = store.put(DATA)
    store.path(blob.sha256).write_bytes(DATA[:-1])
    with pytest.raises(FileFailed, match="damaged"):
        store.get(blob.sha256)
    store.path(blob.sha256).unlink()
    (tmp_path / "elsewhere").write_bytes(DATA)
    store.path(blob.sha256).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(FileFailed):
        store.get(blob.sha256)
    store.put(DATA)
    assert store.get(blob.sha256) == DATA and not store.path(blob.sha256).is_symlink()


def test_many_threads_put_the_same_blob(tmp_path: Path) -> None:
    store = Store.open(tmp_path / "store")
    blobs: list[object] = []
    threads = [threading.Thread(target=lambda: blobs.append(store.put(DATA))) for _ in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len(blobs) == 20 and len(set(map(str, blobs))) == 1
    assert [path.name for path in (tmp_path / "store" / digest(DATA)[:2]).iterdir()] == [digest(DATA)]


@pytest.mark.parametrize(("call", "number", "code"), [("pwrite", errno.ENOSPC, "no_space"), ("sync", errno.EIO, "io_error")])
def test_a_store_whose_disk_says_no_keeps_no_half_blob(call: str, number: int, code: str, tmp_path: Path) -> None:
    Store.open(tmp_path / "store")
    store = Store.open(tmp_path / "store", FailingDisk(call, number))
    for act in (lambda: store.put(DATA), lambda: store.spool("a-1", DATA)):
        with pytest.raises(FileFailed) as caught:
            act()
        assert caught.value.code == code
    assert not [path for path in (tmp_path / "store").rglob("*") if path.is_file()]


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


def dies_once_a_folder_is_made(number: int) -> SimulatedDisk:
    """A disk on which the process ends right after it has made so many folders, the last of them not synced."""
    disk, made = SimulatedDisk(), 0

    def after(operation: str) -> None:
        nonlocal made
        made += operation == "make_folder"
        if made == number:
            raise PowerCut

    disk.after = after
    return disk


def goes_on(disk: SimulatedDisk) -> None:
    disk.end_process()
    disk.after = lambda operation: None


@pytest.mark.parametrize("number", range(1, 5))  # home, store, spool and the blob's own
def test_a_store_lasts_whose_folders_were_made_by_a_process_that_died_before_it_synced_them(number: int) -> None:
    for seed in range(8):
        disk = dies_once_a_folder_is_made(number)
        with pytest.raises(PowerCut):
            Store.open(Path("/home/store"), disk).put(DATA)
        goes_on(disk)
        blob = Store.open(Path("/home/store"), disk).put(DATA)
        disk.cut_power(random.Random(seed))
        assert Store.open(Path("/home/store"), disk).get(blob.sha256) == DATA


@pytest.mark.parametrize("number", range(1, 5))
def test_a_file_lasts_in_folders_that_were_made_by_a_process_that_died_before_it_synced_them(number: int) -> None:
    def placed() -> Path:
        with OutputRoot.open("/home/pictures", any_path=False, disk=disk) as opened:
            return opened.place(opened.parse("a/b/x.png", output_format="png"), DATA, token="t")

    for seed in range(8):
        disk = dies_once_a_folder_is_made(number)
        with pytest.raises(PowerCut):
            placed()
        goes_on(disk)
        path = placed()
        disk.cut_power(random.Random(seed))
        assert disk.content_of(path) == DATA


def test_a_store_that_cannot_be_made_is_told_of_in_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(FileFailed, match=f"{tmp_path}.*cannot be used: No space left"):
        Store.open(tmp_path / "store", FailingDisk("sync_directory", errno.ENOSPC))


@pytest.mark.parametrize("number", [errno.EINVAL, errno.ENOTSUP])
def test_a_folder_above_that_cannot_be_synced_at_all_is_no_obstacle(number: int, tmp_path: Path) -> None:
    """As where homes are mounted one by one: what is there was not made by us."""

    class Unsyncable(Disk):
        def sync_directory(self, directory: int) -> None:
            if os.path.samestat(os.fstat(directory), tmp_path.stat()):
                raise OSError(number, os.strerror(number))
            super().sync_directory(directory)

    (tmp_path / "pictures").mkdir()
    with OutputRoot.open(tmp_path / "pictures", any_path=False, disk=Unsyncable()) as opened:
        assert opened.place(opened.parse("x.png", output_format="png"), DATA, token="t").read_bytes() == DATA
