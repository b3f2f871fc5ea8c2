"""The file of callers: who they are, by which token or certificate they are known, and what they may do.

A token is 256 bits of chance, so a plain SHA-256 of it is enough to keep in the file: there is nothing that could be
guessed, which is what slow hashes of passwords are for, and a slow one would be paid at every new connection.
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
    """A caller as the file has it, known by the SHA-256 of a token, or by a name in its certificate.

    Several hashes: while one token replaces another. quota: units a second (see ``quota``); burst: units at once.
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
        """Of its tokens."""
        return [self.sha256] if isinstance(self.sha256, str) else self.sha256

    @model_validator(mode="after")
    def _can_be_known(self) -> Self:
        if not self.hashes and self.certificate is None:
            raise ValueError("neither sha256 nor certificate is given: name one, or nobody can be this caller")
        if self.burst is not None and self.quota is None:
            raise ValueError("burst is given without quota: name the quota as well")
        return self


class _File(BaseModel):
    model_config = ConfigDict(extra="forbid")

    caller: Annotated[list[Entry], Field(min_length=1)]


@dataclass(frozen=True, eq=False)
class Caller:
    """Somebody who may call: scopes, until when (unix seconds), and the quota where there is one."""

    name: str
    scopes: frozenset[str]
    expires: float
    bucket: Bucket | None


@dataclass(frozen=True, eq=False)
class Callers:
    """All of a file, by what they show."""

    by_hash: dict[bytes, Caller]
    by_certificate: dict[str, Caller]
    remembered: dict[bytes, Caller] = field(default_factory=dict)
    """Callers by authorization headers that were valid before: their tokens need not be hashed again."""

    def of_header(self, authorization: bytes) -> Caller | None:
        """Who sends this header; None where nobody in the file does. Says nothing of when they expire."""
        if (caller := self.remembered.get(authorization)) is not None:
            return caller
        scheme, _, token = authorization.partition(b" ")
        # Found by its hash, which nobody who guesses tokens can steer: how long this takes says nothing of a token.
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
        """Who has a certificate with one of these names."""
        return next((self.by_certificate[name] for name in names if name in self.by_certificate), None)


class CallersFile:
    """Reads the file, again and again: what a caller has used of its quota stays used."""

    def __init__(self, path: Path, workers: int = 1) -> None:
        """A quota is divided among ``workers`` processes, which count each for themselves."""
        self._path: Final = path
        self._workers: Final = workers
        self._buckets: dict[tuple[Any, ...], Bucket] = {}

    def load(self, content: bytes) -> Callers:
        """The callers of the file's content; InputError, without a word of it, where something is wrong."""
        entries = self._entries(content)
        buckets = {self._key(entry): self._bucket(entry) for entry in entries if entry.quota is not None}
        callers = [(entry, self._caller(entry, buckets.get(self._key(entry)))) for entry in entries]
        self._buckets = buckets
        return Callers(
            {bytes.fromhex(found): caller for entry, caller in callers for found in entry.hashes},
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
            ("sha256", [found for entry in entries for found in entry.hashes]),
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
