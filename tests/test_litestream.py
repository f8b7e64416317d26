"""The recipe of the README for replication: the file is destroyed, and comes back with every event up to the last sync."""

import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from aegis_store import EventStore

README = (Path(__file__).parents[1] / "README.md").read_text()

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="there is no wheel of Litestream for Windows")

WRITER = """
import sys, time
from aegis_store import EventStore
with EventStore.open(sys.argv[1], maintain_every=None) as store:
    store.ensure_session("s", max_events=100_000)
    while True:
        print(store.append("s", "note", {"text": "x" * 2000}).seq, flush=True)
"""


@pytest.fixture
def litestream() -> str:
    found = shutil.which("litestream", path=str(Path(sys.executable).parent)) or shutil.which("litestream")
    assert found, "install the test extra, which brings it"
    return found


@pytest.fixture
def replicating(litestream: str, path: Path, tmp_path: Path) -> Iterator["subprocess.Popen[str]"]:
    """Litestream at work, with the configuration of the README."""
    text = README.split("```yaml\n")[1].split("```")[0]
    text = text.replace("/var/lib/agents/agents.db", str(path)).replace("s3://backups/agents", f"file://{tmp_path}/replica")
    config = tmp_path / "litestream.yml"
    config.write_text(f"{text}socket: {{enabled: true, path: {tmp_path}/socket}}\n")
    with (tmp_path / "said").open("w") as said:
        process = subprocess.Popen([litestream, "replicate", "-config", str(config)], stdout=said, stderr=said, text=True)
    deadline = time.monotonic() + 30
    while not (tmp_path / "socket").exists():
        assert time.monotonic() < deadline, (tmp_path / "said").read_text()
        time.sleep(0.02)
    yield process
    process.kill()
    process.wait()


def test_a_store_that_was_destroyed_comes_back_with_every_event_up_to_the_last_sync(
    litestream: str, replicating: "subprocess.Popen[str]", path: Path, tmp_path: Path
) -> None:
    with subprocess.Popen([sys.executable, "-c", WRITER, str(path)], stdout=subprocess.PIPE, text=True) as writer:
        assert writer.stdout is not None
        acknowledged = 0
        for line in writer.stdout:
            acknowledged = int(line)
            if acknowledged == 3000:
                break
        sync = [litestream, "sync", "-wait", "-socket", str(tmp_path / "socket"), str(path)]
        subprocess.run(sync, check=True, capture_output=True)
        writer.send_signal(signal.SIGKILL)
    replicating.kill()
    replicating.wait()
    for file in path.parent.glob(f"{path.name}*"):
        file.unlink()
    command = next(line for line in README.splitlines() if "litestream restore" in line)
    command = command.replace("/var/lib/agents/agents.db", str(path)).replace(
        "s3://backups/agents", f"file://{tmp_path}/replica"
    )
    command = re.sub(r"\blitestream\b(?= restore)", litestream, command.partition(" && aegis-store")[0])
    subprocess.run(["sh", "-c", command], check=True, capture_output=True)
    assert path.stat().st_mode & 0o077 == 0
    with EventStore.open(path, prune_on_open=False) as store:
        assert store.verify().ok  # the two tables of Litestream are known
        session = store.get_session("s")
        assert session.last_seq >= acknowledged
        assert session.event_count == session.last_seq
        assert store.append("s", "note", {}).seq == session.last_seq + 1
