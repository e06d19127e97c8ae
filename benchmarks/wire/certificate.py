"""A certificate of one's own for 127.0.0.1, made by openssl and gone with the run."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path


class NoOpenssl(Exception):
    """There is no openssl command to make a certificate with."""


def make(folder: Path) -> tuple[str, str]:
    """Write a self-signed certificate and its key, and return their paths.

    Raises:
        NoOpenssl: It cannot be made on this machine.
    """
    openssl = shutil.which("openssl")
    if openssl is None:
        raise NoOpenssl("the openssl command, which makes the certificate, is not installed")
    certificate, key = str(folder / "certificate.pem"), str(folder / "key.pem")
    command = [openssl, "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256"]
    command += ["-nodes", "-keyout", key, "-out", certificate, "-days", "2"]
    command += ["-subj", "/CN=127.0.0.1", "-addext", "subjectAltName=IP:127.0.0.1"]
    subprocess.run(command, check=True, capture_output=True)
    return certificate, key
