"""A timestamp authority for tests: certificates made here, answers by the openssl command, served on loopback."""

from __future__ import annotations

import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives import serialization as s
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

DAY = timedelta(days=1)
TST_INFO = "1.2.840.113549.1.9.16.1.4"
CONFIG = """
[tsa]
serial = serial
signer_digest = sha256
default_policy = 1.2.3.4.1
digests = sha256, sha384, sha512
accuracy = secs:2, millisecs:500
ess_cert_id_alg = sha256
"""


class Authority:
    """A root, and a certificate for timestamps under it. `purpose` and `valid` are the latter's."""

    def __init__(
        self,
        folder: Path,
        name: str = "Test authority",
        *,
        purpose: x509.ObjectIdentifier = ExtendedKeyUsageOID.TIME_STAMPING,
        critical: bool = True,
        valid: tuple[datetime, datetime] | None = None,
    ) -> None:
        folder.mkdir(parents=True)
        self.folder = folder
        now = datetime.now(UTC)
        root_key, key = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())
        long = (now - 1000 * DAY, now + 1000 * DAY)
        root = _builder(f"{name} root", f"{name} root", root_key, long)
        root = root.add_extension(x509.BasicConstraints(True, None), critical=True)
        self.root = root.sign(root_key, hashes.SHA256())
        usage = x509.ExtendedKeyUsage([purpose])
        signer = _builder(name, f"{name} root", key, valid or long).add_extension(usage, critical=critical)
        self.certificate = signer.sign(root_key, hashes.SHA256())
        self.root_file = folder / "root.pem"
        self.root_file.write_bytes(self.root.public_bytes(s.Encoding.PEM))
        (folder / "signer.pem").write_bytes(self.certificate.public_bytes(s.Encoding.PEM))
        (folder / "key.pem").write_bytes(key.private_bytes(s.Encoding.PEM, s.PrivateFormat.PKCS8, s.NoEncryption()))
        (folder / "tsa.cnf").write_text(CONFIG)
        (folder / "serial").write_text("0A\n")

    def reply(self, request: bytes) -> bytes:
        """The answer to a request, by `openssl ts`."""
        (self.folder / "query").write_bytes(request)
        self._openssl(
            "ts -reply -config tsa.cnf -section tsa -queryfile query -signer signer.pem -inkey key.pem -out out"
        )
        return (self.folder / "out").read_bytes()

    def resign(self, answer: bytes, change: Callable[[bytes], bytes] = lambda content: content) -> bytes:
        """Another authority's answer with its content changed and signed by us, whatever our certificate is for."""
        (self.folder / "in").write_bytes(answer)
        self._openssl("ts -reply -in in -token_out -out token")
        self._openssl("cms -verify -noverify -binary -inform DER -in token -out content")
        (self.folder / "content").write_bytes(change((self.folder / "content").read_bytes()))
        self._openssl(
            "cms -sign -binary -nodetach -nosmimecap -md sha256 -outform DER -in content -signer signer.pem "
            f"-inkey key.pem -econtent_type {TST_INFO} -out token"
        )
        return granting((self.folder / "token").read_bytes())

    def _openssl(self, arguments: str) -> None:
        subprocess.run(["openssl", *arguments.split()], cwd=self.folder, check=True, capture_output=True, timeout=20)


def granting(token: bytes, status: int = 0) -> bytes:
    """A response (DER) of this status around a token."""
    return _sequence(_sequence(bytes([2, 1, status])) + token)


def changed_time(to: datetime) -> Callable[[bytes], bytes]:
    """Write another time into the content of an answer made now, which is its only GeneralizedTime of 15 bytes."""

    def change(content: bytes) -> bytes:
        place = content.index(b"\x18\x0f") + 2
        return content[:place] + f"{to:%Y%m%d%H%M%SZ}".encode() + content[place + 15 :]

    return change


@contextmanager
def served(answer: Callable[[BaseHTTPRequestHandler, bytes], None]) -> Iterator[str]:
    """The address of a server on loopback that lets `answer` answer each POST."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            answer(self, self.rfile.read(int(self.headers["Content-Length"])))

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/tsa"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def send(handler: BaseHTTPRequestHandler, body: bytes, code: int = 200, **headers: str) -> None:
    handler.send_response(code)
    for name, value in {"Content-Type": "application/timestamp-reply", **headers}.items():
        handler.send_header(name.replace("_", "-"), value)
    handler.end_headers()
    handler.wfile.write(body)


def _sequence(content: bytes) -> bytes:
    length = len(content)
    if length < 128:
        return bytes([0x30, length]) + content
    size = length.to_bytes((length.bit_length() + 7) // 8, "big")
    return bytes([0x30, 0x80 | len(size)]) + size + content


def _builder(
    subject: str, issuer: str, key: ec.EllipticCurvePrivateKey, valid: tuple[datetime, datetime]
) -> x509.CertificateBuilder:
    builder = x509.CertificateBuilder().subject_name(_name(subject)).issuer_name(_name(issuer))
    builder = builder.public_key(key.public_key()).serial_number(x509.random_serial_number())
    return builder.not_valid_before(valid[0]).not_valid_after(valid[1])


def _name(text: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])
