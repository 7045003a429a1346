"""Certificate and key of HTTPS: looked at before anything else is started.

Owns the sentences for files that cannot be used. uvicorn reads them again and serves with them; ``cli``
calls this first.
"""

import ssl

from nexa_runtime.config import ServerSettings
from nexa_runtime.errors import ConfigError


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
        raise ConfigError(f"{where}, but {_reason(error, has_asked=has_asked)}.") from None


def _check_readable(name: str, path: str) -> None:
    try:
        with open(path, "rb") as file:
            file.read(1)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise ConfigError(f"{name} is {path[:200]!r}, which cannot be read: {reason}.") from None


def _reason(error: Exception, *, has_asked: bool) -> str:
    reason = getattr(error, "reason", None)
    if reason == "KEY_VALUES_MISMATCH":
        return "the key is not the certificate's"
    if has_asked:
        return "NEXA_TLS_KEY_PASSWORD is not the password of the key"
    return "these are no certificate and private key in PEM"
