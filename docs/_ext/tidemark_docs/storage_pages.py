"""The pages of what is stored: Redis, the archive and bundles, from the modules that read and write it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

import numpy as np

from feature_store.archive import reader
from feature_store.bundles.bundle import Manifest
from feature_store.online.keys import STORED_ITEMS
from feature_store.state import checksum, layout, log_entries, profile, tombstone
from feature_store.state.packed import PackedField
from tidemark_docs.docstrings import introduction
from tidemark_docs.markdown import code, paragraphs, prose, table, target
from tidemark_docs.models import field_table

REDIS: Final = """\
# Keys in Redis

Everything that tidemark keeps in Redis is under these keys. `<id>` is a customer id, and `<fingerprint>` identifies a
list of features.
"""
FORMATS: Final = """\
# Packed formats

States and profiles are packed into one value per customer. All numbers are little-endian.
"""
ARCHIVE: Final = """\
# Archive

`tidemark archive` writes live events into a folder of Parquet files, which any tool can read.
"""
BUNDLE: Final = """\
# Bundles and the manifest

A bundle is a folder of the registry, named by its version:

- `model.onnx` is the graph, which computes everything from a state: features, probabilities, spend and thresholds.
- `manifest.json` describes it. The fields are below.
- `golden.npz` holds real rows and what the graph made of them. A server replays them before it serves the bundle.
- `evidence.json` and `evidence.npz` hold the tables and test rows of the report. Servers do not read them.
- `report.html` is the report of the training.

The link `current` names the version to serve, `rollout.json` names a shadow or a canary, and the link `serving` names
the version that servers changed to last.
"""


def pages() -> dict[str, str]:
    """The pages ``redis.md``, ``packed-formats.md``, ``archive.md`` and ``manifest.md`` of the reference."""
    return {
        "reference/redis.md": _redis(),
        "reference/packed-formats.md": _formats(),
        "reference/archive.md": _archive(),
        "reference/manifest.md": f"{BUNDLE}\n## Manifest\n\n{field_table(Manifest, 'field')}",
    }


def _redis() -> str:
    sections = []
    for item in STORED_ITEMS:
        lines = [
            f"Type: {item.kind}",
            f"Purpose: {prose(item.purpose)}",
            f"Lifetime: {prose(item.lifetime)}",
            f"Data about a customer: {'yes' if item.personal else 'no'}",
        ]
        sections += [f"## {code(item.key)}\n", f"{prose(item.content)}\n", *(f"- {line}" for line in lines), ""]
    return "\n".join([REDIS, *sections])


def _formats() -> str:
    parts = [FORMATS, target("format-state", "## State"), paragraphs(introduction(layout))]
    parts += ["The packed value has these fields, followed by one `<f8` per feature:\n", _fields(layout.HEADER_FIELDS)]
    parts += [target("format-profile", "## Profile"), paragraphs(introduction(profile)), "### Head\n"]
    parts += [_fields(profile.HEAD_FIELDS), "### Each interest\n", _fields(profile.INTEREST_FIELDS)]
    parts += ["### Each channel\n", _fields(profile.CHANNEL_FIELDS), "### Each id\n", _fields(profile.ALIAS_FIELDS)]
    parts += ["### Each counted event\n", f"The hour since 1970 and a tag, {profile.COUNTED_BYTES} bytes in all.\n"]
    parts += ["### Bound\n", _fields(profile.BOUND_FIELDS)]
    parts += [target("format-tombstone", "## Tombstone"), paragraphs(introduction(tombstone))]
    parts += [_fields(tombstone.HEAD_FIELDS)]
    parts += [target("format-checksum", "## Checksum"), paragraphs(introduction(checksum))]
    parts += [target("format-log", "## Log entries"), paragraphs(introduction(log_entries))]
    return "\n".join(parts)


def _archive() -> str:
    parts = [ARCHIVE, "## Columns of `events-*.parquet`\n", _columns(reader.COLUMNS, reader.COLUMN_MEANINGS)]
    parts += ["## Columns of `aliases-*.parquet`\n", _columns(reader.ALIAS_COLUMNS, reader.ALIAS_MEANINGS)]
    parts += ["## `position.json`\n", paragraphs(introduction(reader)), field_table(reader.ArchiveManifest, "field")]
    parts += ["Each entry of `events` has these fields:\n", field_table(reader.EventFile, "field")]
    return "\n".join(parts)


def _columns(types: Mapping[str, str], meanings: Mapping[str, str]) -> str:
    return table(
        ["column", "type", "meaning"], [[code(name), code(kind), meanings[name]] for name, kind in types.items()]
    )


def _fields(fields: Sequence[PackedField]) -> str:
    """A table of packed fields with their offsets in bytes."""
    rows, offset = [], 0
    for field in fields:
        size = np.dtype(field.kind).itemsize
        rows.append([str(offset), str(size), code(field.name), code(field.kind), prose(field.meaning)])
        offset += size
    return table(["offset", "bytes", "field", "type", "meaning"], rows)
