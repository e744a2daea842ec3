"""Servers with TLS on loopback, by certificates of an authority that is made for them."""

import datetime
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from tests.support.http_servers import Answering, Server

DAY = datetime.timedelta(days=1)


@dataclass(frozen=True)
class Authority:
    """Whom its clients have to trust, and what its servers show."""

    trusted: Path
    """Its own certificate."""
    shown: Path
    """A certificate for the names, with its key."""


def authority(folder: Path, *names: str) -> Authority:
    """An authority with one certificate for these names."""
    now = datetime.datetime.now(datetime.UTC)
    keys = [ec.generate_private_key(ec.SECP256R1()) for _ in range(2)]
    ours, theirs = (x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)]) for name in ("an authority", names[0]))

    def signed(subject: x509.Name, key: int, more: x509.ExtensionType, *, ca: bool) -> bytes:
        made = x509.CertificateBuilder().subject_name(subject).issuer_name(ours)
        made = made.public_key(keys[key].public_key()).serial_number(x509.random_serial_number())
        made = made.not_valid_before(now - DAY).not_valid_after(now + DAY)
        made = made.add_extension(x509.BasicConstraints(ca=ca, path_length=None), critical=True)
        made = made.add_extension(more, critical=False)
        made = made.add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(keys[0].public_key()), critical=False
        )
        return made.sign(keys[0], hashes.SHA256()).public_bytes(serialization.Encoding.PEM)

    own = signed(ours, 0, x509.SubjectKeyIdentifier.from_public_key(keys[0].public_key()), ca=True)
    alternatives = x509.SubjectAlternativeName([x509.DNSName(name) for name in names])
    pem = (serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    made = Authority(folder / "authority.pem", folder / "server.pem")
    made.trusted.write_bytes(own)
    made.shown.write_bytes(signed(theirs, 1, alternatives, ca=False) + keys[1].private_bytes(*pem))
    return made


@contextmanager
def listening_securely(handler: type[Answering], known: Authority, **attributes: object) -> Iterator[int]:
    """The port at which a server answers as the handler does."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(known.shown)
    with Server(("127.0.0.1", 0), type("Bound", (handler,), attributes)) as server:
        # The handshake is the connection's own, in its thread.
        server.socket = context.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            yield server.server_port
        finally:
            server.shutdown()
            thread.join()
