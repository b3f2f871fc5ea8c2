"""Which events an archive holds."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import duckdb

from feature_store.archive.reader import ArchiveSnapshot, read_archive


def archived_events(folder: Path) -> Counter[str]:
    """How often each event is in an archive."""

    def use(snapshot: ArchiveSnapshot) -> Counter[str]:
        with duckdb.connect() as connection:
            rows = connection.execute(f"SELECT event_id FROM ({snapshot.events_sql})").fetchall()
        return Counter(event_id for (event_id,) in rows)

    return read_archive(folder, use)
