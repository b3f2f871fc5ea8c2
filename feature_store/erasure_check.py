"""Searches every place in which a customer could be, to prove an erasure."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Sequence
from itertools import islice
from pathlib import Path

from feature_store.archive.reader import ArchiveSnapshot, holds_archive, read_archive
from feature_store.errors import InputError
from feature_store.online.command_client import CommandClient
from feature_store.online.erased_customers import OF_CUSTOMER
from feature_store.online.event_log import EventLog
from feature_store.online.keys import CHUNK, PROFILE_PREFIX
from feature_store.sandbox import connect
from feature_store.sql import fill_table, identifier, literal
from feature_store.state.checksum import remove_checksums
from feature_store.state.log_entries import LoggedErasure, decode_entry, without_customers
from feature_store.state.profile import Profile, UnreadableProfileError

TEXT_FILES = (".json", ".jsonl", ".csv", ".tsv", ".txt", ".html", ".log", ".toml")


def traces_of(
    client: CommandClient, customer_ids: Collection[str], archive: Path | None, folders: Sequence[Path]
) -> Iterator[str]:
    """The places in which customers are found, in words that do not repeat an id.

    Args:
        client: Redis.
        customer_ids: Ids to search for. Other ids of the same customers have to be among them.
        archive: Folder of the archive, if there is one.
        folders: Folders whose text files and Parquet files are searched, for example a registry and its evidence.

    Raises:
        InputError: A folder or an entry of the log cannot be read.
        StoreUnavailableError: Redis does not answer.
    """
    ids = set(customer_ids)
    yield from _in_keys(client, ids)
    if not client.is_cluster:
        yield from _in_log(EventLog(client, accept_missing=True), ids)
    if archive is not None:
        if not holds_archive(archive):
            raise InputError(f"{archive} holds no archive: name the folder that live events are archived in")
        yield from read_archive(archive, lambda snapshot: _in_archive(snapshot, ids))
    for folder in folders:
        yield from _in_files(folder, ids)


def _in_keys(client: CommandClient, ids: set[str]) -> Iterator[str]:
    scan = client.redis.scan_iter(b"tm:*:*", CHUNK)
    while keys := client.call(lambda: list(islice(scan, CHUNK))):
        profiles = []
        for key in keys:
            match = OF_CUSTOMER.fullmatch(key)
            if match and match[1].decode("utf-8", "surrogateescape") in ids:
                yield "a key in Redis: " + ("profile" if key.startswith(PROFILE_PREFIX) else "state")
            elif key.startswith(PROFILE_PREFIX):
                profiles.append(key)
        values = client.call(client.redis.mget, profiles) if profiles else []
        for value in remove_checksums(profiles, values):
            try:
                profile = Profile.from_stored(value)
            except UnreadableProfileError:
                continue
            if profile.alias_of in ids or ids.intersection(profile.aliases):
                yield "the profile of another customer in Redis, as an alias"


def _in_log(log: EventLog, ids: set[str]) -> Iterator[str]:
    for position, entry in log.entries(1, log.position()):
        if without_customers(position, entry, ids) is None:
            continue
        for item in decode_entry(position, entry):
            if isinstance(item, LoggedErasure):
                if ids.intersection(item.customer_ids):
                    yield f"log entry {position}: the erasure, which waits for the archiver"
                break
        else:
            yield f"log entry {position}"


def _in_archive(snapshot: ArchiveSnapshot, ids: set[str]) -> list[str]:
    with connect([snapshot.folder]) as connection:
        fill_table(connection, "ids", {"id": "VARCHAR"}, [(name,) for name in ids])
        traces = [
            f"archive file {file.name}"
            for file in snapshot.files
            if connection.execute(
                f"SELECT 1 FROM read_parquet({literal(file)}) "
                "WHERE customer_id IN (FROM ids) OR text IN (FROM ids) LIMIT 1"
            ).fetchall()
        ]
        aliases = f"SELECT 1 FROM ({snapshot.aliases_sql}) WHERE alias IN (FROM ids) OR root IN (FROM ids) LIMIT 1"
        return traces + ["the archive's aliases"] * bool(connection.execute(aliases).fetchall())


def _in_files(folder: Path, ids: set[str]) -> Iterator[str]:
    if not folder.is_dir():
        raise InputError(f"{folder} is not a folder")
    # As a whole word in JSON, or as a whole field of a table.
    words = {form.encode() for name in ids for form in (json.dumps(name), json.dumps(name, ensure_ascii=False))}
    fields = {name.encode() for name in ids}
    for path in sorted(folder.rglob("*")):
        if path.suffix == ".parquet" and path.is_file():
            if _in_parquet(path, ids):
                yield str(path)
        elif path.suffix in TEXT_FILES and path.is_file():
            with path.open("rb") as file:
                if any(
                    any(word in line for word in words)
                    or not fields.isdisjoint(line.strip().replace(b"\t", b",").replace(b";", b",").split(b","))
                    for line in file
                ):
                    yield str(path)


def _in_parquet(path: Path, ids: set[str]) -> bool:
    with connect([path.parent]) as connection:
        fill_table(connection, "ids", {"id": "VARCHAR"}, [(name,) for name in ids])
        columns = connection.execute(f"DESCRIBE SELECT * FROM read_parquet({literal(path)})").fetchall()
        texts = [name for name, kind, *_ in columns if kind == "VARCHAR"]
        conditions = " OR ".join(f"{identifier(name)} IN (FROM ids)" for name in texts)
        query = f"SELECT 1 FROM read_parquet({literal(path)}) WHERE {conditions} LIMIT 1"
        return bool(texts) and bool(connection.execute(query).fetchall())
