"""A store on a file system that other machines write too is refused, before SQLite touches anything."""

from collections.abc import Callable
from pathlib import Path

import pytest
from alembic import config as alembic

from aegis_store import EventStore, StoreUnavailable, file_system

INI = Path(__file__).resolve().parents[1] / "alembic.ini"
Mounted = Callable[[str, str], None]


@pytest.fixture
def mounted(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Mounted:
    """Lets this process think that such a file system is mounted there."""
    mounts = tmp_path_factory.mktemp("proc") / "mountinfo"
    mounts.write_text("21 1 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw\n")
    monkeypatch.setattr(file_system, "_MOUNTS", mounts)
    monkeypatch.delenv(file_system.ALLOWED_VARIABLE, raising=False)

    def mount(place: str, kind: str) -> None:
        escaped = place.replace("\\", "\\134").replace(" ", "\\040")
        with mounts.open("a") as file:
            file.write(f"30 21 0:40 / {escaped} rw - {kind} server:/export rw,vers=4.2\n")

    return mount


@pytest.mark.parametrize("kind", ["nfs", "nfs4", "cifs", "9p", "virtiofs", "fuse.sshfs"])
def test_a_store_on_a_network_file_system_is_neither_opened_nor_made(tmp_path: Path, mounted: Mounted, kind: str) -> None:
    (tmp_path / "a b").mkdir()
    mounted(str(tmp_path / "a b"), kind)
    new = tmp_path / "a b/aegis.db"
    for opened in (EventStore.open, EventStore.upgrade, EventStore.compact):
        with pytest.raises(StoreUnavailable, match=rf"network file system \({kind}\).*put it on a local disk"):
            opened(new)
    assert not list(new.parent.iterdir())


@pytest.mark.parametrize("command", ["upgrade head", "downgrade base", "current"])
def test_alembic_refuses_it_as_well(
    path: Path, mounted: Mounted, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], command: str
) -> None:
    mounted(str(path.parent), "nfs4")
    before = path.read_bytes()
    for store in (path, path.with_name("new.db")):
        with pytest.raises(SystemExit):
            alembic.main(["-c", str(INI), "-x", f"url={store}", *command.split()])
        with pytest.raises(StoreUnavailable) as caught:
            EventStore.open(store)
        assert str(caught.value) in "".join(capsys.readouterr())
    assert (path.read_bytes(), list(path.parent.iterdir())) == (before, [path])
    monkeypatch.setenv(file_system.ALLOWED_VARIABLE, "1")
    alembic.main(["-c", str(INI), "-x", f"url={path}", *command.split()])


def test_it_is_opened_where_that_is_allowed(path: Path, mounted: Mounted, monkeypatch: pytest.MonkeyPatch) -> None:
    mounted(str(path.parent), "nfs4")
    EventStore.open(path, allow_network_file_system=True).close()
    monkeypatch.setenv(file_system.ALLOWED_VARIABLE, "1")
    EventStore.open(path).close()


def test_a_local_disk_below_a_network_file_system_or_beside_it_will_do(path: Path, mounted: Mounted) -> None:
    mounted(str(path.parent.parent), "nfs")
    mounted(f"{path.parent}-beside", "nfs")
    mounted(str(path.parent), "xfs")
    assert file_system.kind_of(path) == "xfs"
    EventStore.open(path).close()


def test_of_two_file_systems_at_one_place_the_later_one_counts(path: Path, mounted: Mounted) -> None:
    mounted(str(path.parent), "nfs")
    mounted(str(path.parent), "tmpfs")
    assert file_system.kind_of(path) == "tmpfs"


def test_a_symbolic_link_is_followed(path: Path, tmp_path_factory: pytest.TempPathFactory, mounted: Mounted) -> None:
    mounted(str(path.parent), "nfs")
    link = tmp_path_factory.mktemp("elsewhere") / "link.db"
    link.symlink_to(path)
    with pytest.raises(StoreUnavailable, match="network"):
        EventStore.open(link)


def test_where_it_cannot_be_known_it_is_opened(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(file_system, "_MOUNTS", tmp_path / "missing")
    assert file_system.kind_of(path) is None
    EventStore.open(path).close()
    (tmp_path / "noise").write_bytes(b"\xff\x00 - \n\n- - -\n1 2 3 4 - x")
    monkeypatch.setattr(file_system, "_MOUNTS", tmp_path / "noise")
    assert file_system.kind_of(path) is None
