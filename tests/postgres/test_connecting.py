"""How a URL leads to a server: TLS, and passwords that do not stand in it. What is wrong is told, with no password."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import URL

from aegis_store import EventStore, StoreUnavailable
from tests.postgres.own_server import OwnServer, own_server
from tests.postgres.tls import certificate, tls_before

PASSWORD = "ge:he@im"


@pytest.fixture(scope="module")
def server() -> Iterator[OwnServer]:
    """One that asks the role `agents` for a password."""
    with own_server() as server:
        EventStore.upgrade(server.url)
        with server.connect() as shell:
            shell.execute(f"CREATE ROLE agents SUPERUSER LOGIN PASSWORD '{PASSWORD}'".encode())
            (server.directory / "data" / "pg_hba.conf").write_text("local all postgres trust\nlocal all all scram-sha-256\n")
            shell.execute("SELECT pg_reload_conf()")
        yield server


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("certificates")
    for name in ("server", "other"):
        certificate(directory, name)
    return directory


@pytest.fixture(autouse=True)
def _nothing_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in [name for name in os.environ if name.startswith("PG")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))


def url(port: int, host: str = "127.0.0.1", password: str | None = PASSWORD, **query: str) -> str:
    return URL.create("postgresql+psycopg", "agents", password, host, port, "postgres", query).render_as_string(
        hide_password=False
    )


def opened(place: str) -> bool:
    with EventStore.open(place, prune_on_open=False, maintain_every=None) as store:
        store.ensure_session("s")
        return store.append("s", "t", 1).seq > 0


def refusal(place: str) -> str:
    with pytest.raises(StoreUnavailable) as caught:
        EventStore.open(place)
    assert PASSWORD not in f"{caught.value} {caught.value!r} {caught.value.__dict__}"
    return str(caught.value)


def socket_of(server: OwnServer) -> Path:
    return server.directory / ".s.PGSQL.5432"


def test_a_server_with_a_certificate_that_the_root_has_signed_is_taken(server: OwnServer, certificates: Path) -> None:
    root = certificates / "server.crt"
    with tls_before(socket_of(server), root) as port:
        assert opened(url(port, sslmode="verify-full", sslrootcert=str(root)))


@pytest.mark.parametrize(
    ("host", "root", "told"),
    [
        ("127.0.0.1", "other.crt", "certificate verify failed"),
        ("localhost", "server.crt", "does not match host name"),
        ("127.0.0.1", "none.crt", 'none.crt" does not exist'),
    ],
)
def test_a_certificate_that_is_not_to_be_trusted_is_told(
    server: OwnServer, certificates: Path, host: str, root: str, told: str
) -> None:
    with tls_before(socket_of(server), certificates / "server.crt") as port:
        found = refusal(url(port, host, sslmode="verify-full", sslrootcert=str(certificates / root)))
    assert told in found
    assert found.endswith("check sslmode and sslrootcert in the URL, and the certificate of the server")


def test_a_server_without_tls_is_not_spoken_to_where_the_url_asks_for_it(server: OwnServer) -> None:
    with tls_before(socket_of(server), None) as port:
        assert "server does not support SSL, but SSL was required: check sslmode" in refusal(url(port, sslmode="require"))
        assert opened(url(port, sslmode="prefer"))


def test_the_password_may_stand_in_the_environment_a_password_file_or_a_service_file(
    server: OwnServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = f"postgresql+psycopg://agents@/postgres?host={server.directory}"
    assert "no password supplied: check the user, the password" in refusal(place)
    with monkeypatch.context() as given:
        given.setenv("PGPASSWORD", PASSWORD)
        assert opened(place)
    with monkeypatch.context() as given:
        given.setenv("PGPASSFILE", str(written(tmp_path / "passwords", r"*:*:*:agents:ge\:he@im")))
        assert opened(place)
    service = f"[agents]\nhost={server.directory}\nuser=agents\npassword={PASSWORD}\ndbname=postgres\n"
    monkeypatch.setenv("PGSERVICEFILE", str(written(tmp_path / "services", service)))
    assert opened("postgresql+psycopg://?service=agents")
    assert 'definition of service "other" not found: check the service' in refusal("postgresql+psycopg://?service=other")


def written(file: Path, content: str) -> Path:
    file.write_text(content)
    file.chmod(0o600)
    return file
