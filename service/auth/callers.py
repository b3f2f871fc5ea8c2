"""The file of callers: their names, tokens or certificates, scopes and quotas.

A token has 256 random bits, so the file may hold its plain SHA-256: slow password hashes protect secrets that can be
guessed, and a slow hash would have to be computed for every new connection.
"""

from __future__ import annotations

import hashlib
import json
import math
import tomllib
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Final, Literal, Self

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, ValidationError, model_validator

from feature_store.config import first_problem
from feature_store.errors import InputError
from service.auth.quota import Bucket

Scope = Literal["score", "events", "customers", "models"]
Hash = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
MAX_REMEMBERED_HEADERS: Final = 4096
"""Authorization headers whose caller is remembered: each caller sends one or two."""


class Entry(BaseModel):
    """A caller in the file, identified by the SHA-256 of a token or by a name in its certificate.

    There are several hashes while one token replaces another. ``quota`` is in units per second (see
    :mod:`service.auth.quota`), ``burst`` in units at once.
    """

    model_config = ConfigDict(extra="forbid")

    name: Annotated[str, Field(min_length=1, max_length=64, pattern=r"^[A-Za-z0-9._@:/-]+$")]
    scopes: Annotated[list[Scope], Field(min_length=1)]
    sha256: Hash | list[Hash] = []
    certificate: Annotated[str, Field(min_length=1)] | None = None
    quota: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = None
    burst: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = None
    expires: AwareDatetime | None = None

    @property
    def hashes(self) -> list[str]:
        """The hashes of its tokens."""
        return [self.sha256] if isinstance(self.sha256, str) else self.sha256

    @model_validator(mode="after")
    def _can_be_identified(self) -> Self:
        if not self.hashes and self.certificate is None:
            raise ValueError("neither sha256 nor certificate is given: give one, or nobody can be this caller")
        if self.burst is not None and self.quota is None:
            raise ValueError("burst is given without quota: give the quota as well")
        return self


class _File(BaseModel):
    model_config = ConfigDict(extra="forbid")

    caller: Annotated[list[Entry], Field(min_length=1)]


@dataclass(frozen=True, eq=False)
class Caller:
    """A caller: its scopes, when it expires (unix seconds), and its quota, None without a limit."""

    name: str
    scopes: frozenset[str]
    expires: float
    bucket: Bucket | None


@dataclass(frozen=True, eq=False)
class Callers:
    """All callers of a file, by the credentials that they present."""

    by_hash: dict[bytes, Caller]
    by_certificate: dict[str, Caller]
    remembered: dict[bytes, Caller] = field(default_factory=dict)
    """Callers by authorization headers that were valid before: their tokens need not be hashed again."""

    def of_header(self, authorization: bytes) -> Caller | None:
        """The caller of an authorization header, which may have expired; None if the token is not in the file."""
        if (caller := self.remembered.get(authorization)) is not None:
            return caller
        scheme, _, token = authorization.partition(b" ")
        # Looked up by its hash, which an attacker cannot steer: the time that this takes reveals nothing about a token.
        caller = self.by_hash.get(hashlib.sha256(token).digest())
        if caller is None or scheme.lower() != b"bearer":
            return None
        if len(self.remembered) >= MAX_REMEMBERED_HEADERS:
            self.remembered.clear()
        self.remembered[authorization] = caller
        return caller

    def forget(self, authorization: bytes) -> None:
        """Hash the token of this header again next time: a refusal takes as long for it as for any unknown token."""
        self.remembered.pop(authorization, None)

    def of_certificate(self, names: Sequence[str]) -> Caller | None:
        """The caller with one of the names of a certificate; None if there is none."""
        return next((self.by_certificate[name] for name in names if name in self.by_certificate), None)


class CallersFile:
    """Reads the file each time that it changes. The used part of a caller's quota stays used."""

    def __init__(self, path: Path, workers: int = 1) -> None:
        """A quota is divided among ``workers`` processes, each of which counts separately."""
        self._path: Final = path
        self._workers: Final = workers
        self._buckets: dict[tuple[Any, ...], Bucket] = {}

    def load(self, content: bytes) -> Callers:
        """The callers of the file's content; InputError, which never quotes the content, if it is invalid."""
        entries = self._entries(content)
        buckets = {self._key(entry): self._bucket(entry) for entry in entries if entry.quota is not None}
        callers = [(entry, self._caller(entry, buckets.get(self._key(entry)))) for entry in entries]
        self._buckets = buckets
        return Callers(
            {bytes.fromhex(digest): caller for entry, caller in callers for digest in entry.hashes},
            {entry.certificate: caller for entry, caller in callers if entry.certificate is not None},
        )

    def _entries(self, content: bytes) -> list[Entry]:
        try:
            parse: Callable[[str], Any] = json.loads if self._path.suffix == ".json" else tomllib.loads
            entries = _File.model_validate(parse(content.decode())).caller
        except ValidationError as error:
            raise InputError(f"{self._path.name}: {first_problem(error)}") from error
        except (ValueError, RecursionError) as error:  # of the parser, or of the decoder
            kind = "JSON" if self._path.suffix == ".json" else "TOML"
            raise InputError(f"{self._path.name}: not valid {kind} ({error})") from error
        for what, values in (
            ("name", [entry.name for entry in entries]),
            ("sha256", [digest for entry in entries for digest in entry.hashes]),
            ("certificate", [entry.certificate for entry in entries if entry.certificate is not None]),
        ):
            if twice := [value for value, times in Counter(values).items() if times > 1]:
                raise InputError(f"{self._path.name}: {len(twice)} {what} stand(s) there twice: keep one entry of each")
        return entries

    def _caller(self, entry: Entry, bucket: Bucket | None) -> Caller:
        expires = math.inf if entry.expires is None else entry.expires.timestamp()
        return Caller(entry.name, frozenset(entry.scopes), expires, bucket)

    def _bucket(self, entry: Entry) -> Bucket:
        if (bucket := self._buckets.get(self._key(entry))) is not None:
            return bucket
        rate = (entry.quota or 0.0) / self._workers
        return Bucket(entry.name, rate, rate if entry.burst is None else entry.burst / self._workers)

    @staticmethod
    def _key(entry: Entry) -> tuple[Any, ...]:
        return entry.name, entry.quota, entry.burst
