"""TLS of HTTP servers and clients, from PEM files."""

from __future__ import annotations

import ssl
from pathlib import Path

from controlplane.runtime.service import CannotServe


class BadCertificate(CannotServe):
    """A PEM file cannot be used; says which."""


def server_context(
    cert: Path | None, key: Path | None, client_ca: Path | None
) -> ssl.SSLContext | None:
    """For a server; None without a certificate. With `client_ca` it asks clients for theirs.
    Raises `BadCertificate`."""
    if cert is None:
        if client_ca is not None:
            raise BadCertificate(
                "a client_ca needs a certificate of ours as well: set cert and key"
            )
        return None
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    _load(context, client_ca, cert, key)
    if client_ca is not None:
        context.verify_mode = ssl.CERT_REQUIRED
    return context


def client_context(ca: Path | None, cert: Path | None, key: Path | None) -> ssl.SSLContext | None:
    """For a client; None where the system's trust is enough. Raises `BadCertificate`."""
    if ca is None and cert is None:
        return None
    context = ssl.create_default_context()
    _load(context, ca, cert, key)
    return context


def _load(context: ssl.SSLContext, ca: Path | None, cert: Path | None, key: Path | None) -> None:
    try:
        if ca is not None:
            context.load_verify_locations(ca)
        if cert is not None:
            context.load_cert_chain(cert, key)
    except (OSError, ssl.SSLError) as error:
        files = ", ".join(str(each) for each in (ca, cert, key) if each)
        raise BadCertificate(f"cannot use the PEM files {files}: {error}") from error
