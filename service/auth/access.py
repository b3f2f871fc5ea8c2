"""Who may call what: the caller behind a token or a client certificate, and its scopes.

::

    call ──► authorization header, or the certificate's names ──► caller ──► scope of the method ──► handler ──► quota
                    │                                                             │                        │
                    │                                                             │             QUOTA_EXCEEDED
                    │                                                             └ SCOPE_MISSING
                    └ none given: CREDENTIALS_MISSING; not in the file, or expired: CREDENTIALS_INVALID

Each transport asks :meth:`Access.authorize` before it reads a request. The units of a request are known when it has
been decoded, so the handler charges them to the quota, by :meth:`service.call_context.CallContext.charge`. Health and
reflection are open to everybody: they show whether the server serves, and the contract, which is published.
"""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import Final

from service.api import customers, events, models, scoring
from service.auth.callers import Caller, Callers, CallersFile, Scope
from service.errors import Reason, RequestError
from service.file_watch import WatchedFiles
from service.settings import Settings
from tidemark.loopback import is_loopback

logger: Final = logging.getLogger("tidemark")

SCOPES: Final[dict[str, Scope]] = {
    scoring.SERVICE: "score",
    events.SERVICE: "events",
    customers.SERVICE: "customers",
    models.SERVICE: "models",
}
"""The scope that the methods of each service require."""


class Access:
    """Authenticates callers by a file that may change meanwhile, and checks their scopes."""

    def __init__(self, callers: WatchedFiles[Callers], clock: Callable[[], float] = time.time) -> None:
        self.callers: Final = callers
        self._clock: Final = clock
        self.refused: Final[Counter[Reason]] = Counter()
        """Calls refused so far, by reason."""

    @classmethod
    def of(cls, settings: Settings) -> Access | None:
        """As the settings say; None if everybody may call everything. InputError if the file cannot be used."""
        if settings.callers is None:
            return None
        if settings.tls_certificate is None and not is_loopback(settings.host):
            logger.warning("tokens travel in the clear: set tls_certificate, unless a proxy before the server does TLS")
        file = CallersFile(settings.callers, settings.workers)
        return cls(WatchedFiles("callers", [settings.callers], lambda contents: file.load(contents[0])))

    def authorize(self, authorization: bytes | None, names: Sequence[str], scope: Scope) -> Caller:
        """Find the caller of a call and check its scope.

        Args:
            authorization: The authorization header of the call; None without one.
            names: The names in the client's certificate.
            scope: The scope that the method requires.

        Returns:
            The caller.

        Raises:
            RequestError: The caller is unknown or expired, or does not have the scope.
        """
        caller = self.caller(authorization, names)
        if scope not in caller.scopes:
            message = f"this needs the scope {scope}, which the caller does not have: ask for it"
            raise self._refusal(Reason.SCOPE_MISSING, message)
        return caller

    def caller(self, authorization: bytes | None, names: Sequence[str]) -> Caller:
        """Find the caller: by the authorization header if there is one, else by the certificate.

        Raises:
            RequestError: There are no credentials, or they are not in the file, or have expired.
        """
        if authorization is None and not names:
            message = "no credentials: send a token as authorization: Bearer …, or use a client certificate"
            raise self._refusal(Reason.CREDENTIALS_MISSING, message)
        callers = self.callers.value
        caller = callers.of_certificate(names) if authorization is None else callers.of_header(authorization)
        if caller is None or caller.expires <= self._clock():
            if authorization is not None:
                callers.forget(authorization)
            kind = "client certificate" if authorization is None else "token"
            message = f"the {kind} is unknown or has expired: ask for another one"
            raise self._refusal(Reason.CREDENTIALS_INVALID, message)
        return caller

    def repeated(self) -> RequestError:
        """The refusal of a call with more than one authorization header: a proxy may have checked another one."""
        message = "there is more than one authorization header: send one token"
        return self._refusal(Reason.CREDENTIALS_INVALID, message)

    def _refusal(self, reason: Reason, message: str) -> RequestError:
        self.refused[reason] += 1
        return RequestError(reason, message)


def required_scopes(paths: Iterable[str]) -> dict[str, Scope]:
    """The scope that each method requires, by its path; KeyError for a service without a scope."""
    return {path: SCOPES[path.split("/")[1]] for path in paths}
