"""Brings a Redis that has lost commits up to what the archive knows: erasures and consents.

After a failover to a replica that lagged, or from a restored backup, Redis lacks commits that are archived. Their
events are in the archive, and a load brings them back into the states. But until then a customer who was erased would
be scored, and so would one who had withheld consent. The archive knows both, so they are restored first.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from itertools import islice
from typing import Final, NamedTuple

import duckdb

from feature_store.archive.reader import ArchiveSnapshot
from feature_store.archive.replay import CONSENT, ERASED, EventRow, consent_record, erasure_record
from feature_store.online.command_client import CommandClient
from feature_store.online.commit import Group, Write, position_of
from feature_store.online.commit_groups import commit_groups
from feature_store.online.customer_writes import flag_writes
from feature_store.online.erased_customers import (
    ErasedCustomers,
    forget_customers,
    read_erased_customers,
    restore_tombstones,
)
from feature_store.online.erasure import REPLACE
from feature_store.online.event_log import EventLog
from feature_store.online.keys import CHUNK, PROFILE_PREFIX, STORED_LAYOUTS, Keys, log_key, profile_keys
from feature_store.sandbox import connect
from feature_store.state.checksum import remove_checksums
from feature_store.state.folding import StoredCustomer
from feature_store.state.log_entries import (
    LoggedConsent,
    LoggedEvent,
    LoggedLink,
    LoggedMerge,
    decode_entry,
    encode_consent,
    encode_link,
    is_event_until,
    without_customers,
    without_events_until,
)
from feature_store.state.profile import Profile, UnreadableProfileError, alias_of

MAX_ATTEMPTS: Final = 100


class Consent(NamedTuple):
    """What a customer allows."""

    scoring: bool
    automated_response: bool


def restore(client: CommandClient, log: EventLog, snapshot: ArchiveSnapshot, common: int) -> None:
    """Restore erasures and consents that Redis has lost. Repeating it changes nothing.

    Args:
        client: Redis.
        log: Its log.
        snapshot: The archive before it goes on after ``common``.
        common: The last position that Redis and the archive have in common.

    Raises:
        InputError: An entry of the log is malformed.
        StoreUnavailableError: Redis does not answer.
    """
    manifest = snapshot.manifest
    start = common + manifest.offset_at(common)
    with connect([snapshot.folder]) as connection:
        erased = connection.execute(f"SELECT customer_id, max(t), max(seq) {_records(snapshot, ERASED)} GROUP BY 1")
        times, lost = dict[str, float](), dict[str, float]()
        for hashed, erased_at, seq in erased.fetchall():
            times[hashed] = erased_at
            if seq > start:
                lost[hashed] = erased_at
        consents = _lost_consents(connection, snapshot, start)
    key = bytes.fromhex(manifest.erasure_key)
    known = ErasedCustomers(key, times)
    restore_tombstones(client, known)
    _forget_again(client, log, ErasedCustomers(key, lost), common)
    newer = set(_consents_after(log, common))
    _restore_consents(client, {name: consent for name, consent in consents.items() if name not in newer}, known)


def _forget_again(client: CommandClient, log: EventLog, erased: ErasedCustomers, common: int) -> None:
    """Remove customers whose erasures were lost, with events from before them that were accepted again since then.

    A customer that has done something after its erasure has come back.
    """
    came_back = set[str]()
    for at, entry in log.entries(common + 1, log.position()):
        came_back.update(_ids_of_newer_items(at, entry, erased))
    forget_customers(client, erased, came_back)
    for at, entry in log.entries(common + 1, log.position()):
        _remove_old_events(client, at, entry, erased, came_back)


def _ids_of_newer_items(position: int, entry: bytes, erased: ErasedCustomers) -> set[str]:
    """Ids in an entry, but for events from before the erasure of their customers."""
    items = decode_entry(position, entry)
    bounds = erased.among({item.customer_id for item in items if isinstance(item, LoggedEvent)})
    ids = set[str]()
    for item in items:
        match item:
            case LoggedEvent() if not is_event_until(item, bounds):
                ids.add(item.customer_id)
            case LoggedConsent():
                ids.add(item.customer_id)
            case LoggedMerge():
                ids |= {item.alias, item.root}
            case _:
                pass
    return ids


def _remove_old_events(
    client: CommandClient, position: int, entry: bytes | None, erased: ErasedCustomers, came_back: Collection[str]
) -> None:
    """Remove from an entry the events from before the erasure of their customers."""
    key = log_key(position)
    while entry is not None:
        items = decode_entry(position, entry)
        bounds = erased.among({item.customer_id for item in items if isinstance(item, LoggedEvent | LoggedLink)})
        kept = without_events_until(position, entry, bounds)
        gone = bounds.keys() - set(came_back)
        kept = without_customers(position, kept, gone) or kept
        if kept == entry or client.evaluate(REPLACE, [key], entry, kept):
            return
        entry = client.call(client.redis.get, key)  # an erasure has changed it


def earlier_records(client: CommandClient, position: int) -> list[EventRow]:
    """The rows of erasures and consents that Redis knows, and that no log entry tells a new archive.

    Args:
        client: Redis.
        position: The log position up to which the archive goes.

    Raises:
        StoreUnavailableError: Redis does not answer.
    """
    times = read_erased_customers(client).times
    rows = [erasure_record(position, hashed, erased_at) for hashed, erased_at in times.items()]
    scan = client.redis.scan_iter(PROFILE_PREFIX + b"*", CHUNK)
    while keys := client.call(lambda: list(islice(scan, CHUNK))):
        for key, value in zip(keys, remove_checksums(keys, client.call(client.redis.mget, keys)), strict=True):
            profile = _profile(value)
            if profile is not None and not (profile.scoring and profile.automated_response):
                name = key[len(PROFILE_PREFIX) :].decode("utf-8", "surrogateescape")
                consent = Consent(profile.scoring, profile.automated_response)
                rows.append(consent_record(position, name, **consent._asdict()))
    return rows


def _records(snapshot: ArchiveSnapshot, mark: str) -> str:
    return snapshot.records_sql(mark)


def _lost_consents(connection: duckdb.DuckDBPyConnection, snapshot: ArchiveSnapshot, start: int) -> dict[str, Consent]:
    """The newest consent of each customer that set one after ``start``."""
    rows = connection.execute(
        f"""SELECT coalesce(root, customer_id) AS name, arg_max(amount, (seq, n)), arg_max(duration_s, (seq, n))
            FROM ({_records(snapshot, CONSENT)}) LEFT JOIN ({snapshot.aliases_sql}) ON alias = customer_id
            GROUP BY name HAVING max(seq) > {start}"""
    )
    return {name: Consent(bool(scoring), bool(response)) for name, scoring, response in rows.fetchall()}


def _consents_after(log: EventLog, position: int) -> Iterator[str]:
    """Ids of the customers whose consent was set after a position."""
    for at, entry in log.entries(position + 1, log.position()):
        if b'["c",' in entry:
            yield from (item.customer_id for item in decode_entry(at, entry) if isinstance(item, LoggedConsent))


def _restore_consents(client: CommandClient, consents: Mapping[str, Consent], erased: ErasedCustomers) -> None:
    waiting = dict(consents)
    for _ in range(MAX_ATTEMPTS):
        names = iter(list(waiting))
        while chunk := list(islice(names, CHUNK)):
            for name in _set_consents(client, {name: waiting[name] for name in chunk}, erased):
                del waiting[name]
        if not waiting:
            return


def _set_consents(client: CommandClient, consents: Mapping[str, Consent], erased: ErasedCustomers) -> Iterable[str]:
    """Set consents, and return the customers for whom it is done."""
    names = list(consents)
    keys = profile_keys(names)
    layouts = [Keys(name.decode()) for name in sorted(client.call(client.redis.smembers, STORED_LAYOUTS))]
    state_keys = [layout.states(names) for layout in layouts]
    values, *columns = (_read(client, chunk) for chunk in (keys, *state_keys))
    groups, setting, done = [], [], []
    bounds = erased.among(names)
    for at, (name, key, value) in enumerate(zip(names, keys, values, strict=True)):
        profile = _profile(value)
        consent = consents[name]
        states = [of_layout[at] for of_layout in columns]
        customer = StoredCustomer(name, states, value)
        is_same = profile is not None and (profile.scoring, profile.automated_response) == consent
        if profile is None or (is_same and not customer.has_lost_profile):
            done.append(name)
            continue
        profile.scoring, profile.automated_response = consent
        writes = []
        if value is None:
            lost_up_to = customer.as_of if customer.has_lost_profile else -math.inf
            profile.not_before = max(bounds.get(name, -math.inf), lost_up_to)
            writes = flag_writes([of_layout[at] for of_layout in state_keys], states)
        log = [encode_consent(name, **consent._asdict()), encode_link(name, position_of(value))]
        groups.append(Group([Write(key, value, profile.pack()), *writes], log))
        setting.append(name)
    if groups:
        conflicts = set(commit_groups(client, groups).conflicts)
        done += [name for at, name in enumerate(setting) if at not in conflicts]
    return done


def _read(client: CommandClient, keys: Sequence[bytes]) -> list[bytes | None]:
    return remove_checksums(keys, client.call(client.redis.mget, keys))


def _profile(value: bytes | None) -> Profile | None:
    """The profile to set a consent in; None for an alias, and for one that cannot be read, which forbids scoring."""
    try:
        return None if alias_of(value) is not None else Profile.from_stored(value)
    except UnreadableProfileError:
        return None
