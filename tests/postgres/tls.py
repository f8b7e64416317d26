"""TLS before a server of the tests, whose build has none: what a client sees of it is the same."""

import shutil
import socket
import ssl
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

_ASKS_FOR_TLS = bytes.fromhex("0000000804d2162f")


def certificate(directory: Path, name: str) -> Path:
    """One for 127.0.0.1 that signs itself, with its key beside it."""
    if shutil.which("openssl") is None:
        pytest.skip("needs the program openssl, to make certificates")
    made = directory / f"{name}.crt"
    key = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-keyout", str(made.with_suffix(".key")))
    names = ("-subj", f"/CN={name}", "-addext", "subjectAltName=IP:127.0.0.1")
    done = subprocess.run(["openssl", "req", "-x509", *key, *names, "-out", str(made)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return made


@contextmanager
def tls_before(server: Path, certificate: Path | None) -> Iterator[int]:
    """The port of 127.0.0.1 that leads to that socket: by TLS, or, without a certificate, saying that there is none."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        threading.Thread(target=_serve, args=(listening, server, certificate), daemon=True).start()
        yield listening.getsockname()[1]
        with suppress(OSError):
            listening.shutdown(socket.SHUT_RDWR)  # which ends `accept`


def _serve(listening: socket.socket, server: Path, certificate: Path | None) -> None:
    while True:
        try:
            client, _ = listening.accept()
        except OSError:
            return
        threading.Thread(target=_connect, args=(client, server, certificate), daemon=True).start()


def _connect(client: socket.socket, server: Path, certificate: Path | None) -> None:
    with client, suppress(OSError), socket.socket(socket.AF_UNIX) as behind:
        behind.connect(str(server))
        if client.recv(8, socket.MSG_PEEK) == _ASKS_FOR_TLS:
            client.recv(8)
            client.sendall(b"N" if certificate is None else b"S")
            if certificate is not None:
                context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
                context.load_cert_chain(certificate, certificate.with_suffix(".key"))
                client = context.wrap_socket(client, server_side=True)
        with client:
            back = threading.Thread(target=_carry, args=(behind, client), daemon=True)
            back.start()
            _carry(client, behind)
            back.join()


def _carry(source: socket.socket, to: socket.socket) -> None:
    with suppress(OSError):
        while data := source.recv(65536):
            to.sendall(data)
    with suppress(OSError):
        to.shutdown(socket.SHUT_RDWR)
