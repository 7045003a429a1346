"""Certificate and key of HTTPS: looked at before anything else is started.

Owns the sentences for files that cannot be used. uvicorn reads them again and serves with them; ``cli``
calls this first.
"""

import ssl

from nexa_runtime.config import ServerSettings
from nexa_runtime.errors import ConfigError

_MAX_PEM_CHARS = 1_000_000


def check_tls(settings: ServerSettings) -> None:
    """Nothing without a certificate. Raises ``ConfigError`` for files that HTTPS cannot be served with."""
    cert, key, password = settings.tls_cert, settings.tls_key, settings.tls_key_password
    if cert is None:
        if key is not None:
            raise ConfigError("NEXA_TLS_KEY is set; NEXA_TLS_CERT must name the certificate.")
        return
    for name, path in (("NEXA_TLS_CERT", cert), ("NEXA_TLS_KEY", key)):
        if path is not None:
            _check_readable(name, path)
    if key is None and "PRIVATE KEY" not in _text(cert):
        raise ConfigError(f"NEXA_TLS_CERT is {cert!r}, which holds no private key: NEXA_TLS_KEY is missing.")
    has_asked = False

    def say_password() -> str:
        nonlocal has_asked
        has_asked = True
        # Without an answer OpenSSL would ask on the terminal.
        return password.get_secret_value() if password is not None else ""

    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(cert, key, say_password)
    except (ssl.SSLError, OSError, ValueError) as error:
        where = f"NEXA_TLS_CERT is {cert!r}" + ("" if key is None else f" and NEXA_TLS_KEY is {key!r}")
        reason = _reason(error, has_asked=has_asked, has_password=password is not None)
        raise ConfigError(f"{where}, but {reason}.") from None


def _check_readable(name: str, path: str) -> None:
    try:
        with open(path, "rb") as file:
            file.read(1)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise ConfigError(f"{name} is {path[:200]!r}, which cannot be read: {reason}.") from None


def _text(path: str) -> str:
    with open(path, encoding="latin-1") as file:
        return file.read(_MAX_PEM_CHARS)


def _reason(error: Exception, *, has_asked: bool, has_password: bool) -> str:
    reason = getattr(error, "reason", None)
    if reason == "KEY_VALUES_MISMATCH":
        return "the key is not the certificate's"
    if has_asked:
        said = "NEXA_TLS_KEY_PASSWORD is not the password of the key"
        return said if has_password else "the key has a password: NEXA_TLS_KEY_PASSWORD must say it"
    return "these are no certificate and private key in PEM"
