"""Who may call what: the caller behind a token or a client certificate, its scopes, and its quota.

::

    call ──► authorization header, or the certificate's names ──► caller ──► its own methods ──► the call
                    │                                               │            │
                    │                                               │            └ quota used up     QUOTA_EXCEEDED
                    │                                               └ method of another scope        SCOPE_MISSING
                    └ neither; not in the file; expired     CREDENTIALS_MISSING, CREDENTIALS_INVALID

Nothing here knows of a front: each keeps one :class:`Gate`, and looks a call's method up in it instead of in a table.
Health and reflection are open to all: they tell whether the server serves, and the contract, which is published.
"""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Final, Generic, TypeVar

from service.api import customers as convert_customers
from service.api import events as convert_events
from service.api import scoring as convert
from service.api.methods import Handlers
from service.api.scoring import METHODS, Method
from service.auth.callers import Caller, Callers, CallersFile
from service.auth.quota import metered_handlers, metered_scores
from service.errors import Reason, RequestError
from service.file_watch import Watched
from service.settings import Settings
from tidemark.loopback import is_loopback

logger: Final = logging.getLogger("tidemark")

SCOPES: Final = {
    convert.SERVICE: "score",
    convert_events.SERVICE: "events",
    convert_customers.SERVICE: "customers",
    "tidemark.v1.ModelService": "models",
}
"""What is needed for the methods of a service."""

T = TypeVar("T")
Build = Callable[[Mapping[str, Method], Handlers], Mapping[str, T]]
"""A front's own table of methods, by path, made of those of ScoringService and of the others."""


class Access:
    """Tells callers, by a file that may change meanwhile."""

    def __init__(self, callers: Watched[Callers], clock: Callable[[], float] = time.time) -> None:
        self.callers: Final = callers
        self._clock: Final = clock
        self.refused: Final[Counter[str]] = Counter()
        """Calls that were refused here, by reason."""

    @classmethod
    def of(cls, settings: Settings) -> Access | None:
        """As the settings say; None where everybody may call everything. InputError for a file that is no good."""
        if settings.tokens is None:
            return None
        if settings.tls_certificate is None and not is_loopback(settings.host):
            logger.warning(
                "tokens travel in the clear: set tls_certificate, unless something in front of this does TLS"
            )
        file = CallersFile(settings.tokens, settings.workers)
        return cls(Watched("callers", [settings.tokens], lambda contents: file.load(contents[0])))

    def caller(self, authorization: bytes | None, names: Sequence[str]) -> Caller:
        """Who calls, by the header if there is one, else by the certificate; RequestError where that is nobody."""
        if authorization is None and not names:
            message = "no credentials: send a token as authorization: Bearer …, or use a client certificate"
            raise self.refusal(Reason.CREDENTIALS_MISSING, message)
        callers = self.callers.value
        caller = callers.of_certificate(names) if authorization is None else callers.of_header(authorization)
        if caller is None or caller.expires <= self._clock():
            if authorization is not None:
                callers.known.pop(authorization, None)  # from here on it takes as long as any token that is not known
            shown = "client certificate" if authorization is None else "token"
            message = f"the {shown} is not known here, or not any more: ask for another one"
            raise self.refusal(Reason.CREDENTIALS_INVALID, message)
        return caller

    def refusal(self, reason: Reason, message: str) -> RequestError:
        """The error, counted."""
        self.refused[reason.lower()] += 1
        return RequestError(reason, message)


class Gate(Generic[T]):
    """The methods of each caller: those of its scopes, which take from its quota. Made when it first calls."""

    def __init__(self, access: Access, build: Build[T], handlers: Handlers) -> None:
        self._access: Final = access
        self._build: Final = build
        self._handlers: Final = handlers
        self._of: Callers | None = None
        self._methods: dict[Caller, Mapping[str, T]] = {}

    def find(self, path: str, authorization: bytes | None, names: Sequence[str]) -> T:
        """A method as this caller may use it; RequestError where it may not."""
        caller = self._access.caller(authorization, names)
        if self._of is not self._access.callers.value:
            self._of, self._methods = self._access.callers.value, {}
        if (methods := self._methods.get(caller)) is None:
            methods = self._methods[caller] = self._made(caller)
        if (method := methods.get(path)) is None:
            message = f"this needs the scope {scope_of(path)}, which the caller does not have: ask for it"
            raise self._access.refusal(Reason.SCOPE_MISSING, message)
        return method

    def _made(self, caller: Caller) -> Mapping[str, T]:
        scores, all_of = _within(caller, METHODS), self._handlers
        handlers = Handlers(_within(caller, all_of.unary), _within(caller, all_of.streams))
        if caller.bucket is not None:
            scores, handlers = metered_scores(scores, caller.bucket), metered_handlers(handlers, caller.bucket)
        return self._build(scores, handlers)


def scope_of(path: str) -> str:
    """The scope that a method needs."""
    return SCOPES[path.split("/")[1]]


def _within(caller: Caller, methods: Mapping[str, T]) -> dict[str, T]:
    return {path: method for path, method in methods.items() if scope_of(path) in caller.scopes}
