"""Model bundles and the registry: a folder per version, published in one step, checked whenever it is read.

``REGISTRY/<version>/`` holds ``model.onnx``, ``manifest.json`` and ``golden.npz``; ``REGISTRY/current`` is a symbolic
link to the version to serve.
"""

from __future__ import annotations

import errno
import hashlib
import io
import json
import os
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Final

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from feature_store.config import first_problem
from feature_store.definitions import Feature, Interests, fingerprint
from feature_store.files import write_atomically

CURRENT: Final = "current"
VERSION: Final = r"^[0-9A-Za-z][0-9A-Za-z._-]*$"
"""What a version may be called: also a folder, and nothing that leads out of the registry."""
MODEL_FILE: Final = "model.onnx"
MANIFEST_FILE: Final = "manifest.json"
GOLDEN_FILE: Final = "golden.npz"
OWN_HASH: Final = "manifest_sha256"
"""Where the manifest has the hash of all else that it says."""

INPUTS: Final = ("state", "age", "economics")
OUTPUTS: Final = (
    "churn_probability",
    "propensity_probability",
    "expected_spend",
    "churn_threshold",
    "propensity_threshold",
)
OFFERS: Final = ("churn", "propensity")
OFFER_FIGURES: Final = ("contact_cost", "offer_cost", "success_rate", "redemption_rate", "budget_price")
ECONOMICS: Final = ("margin", *(f"{offer}.{figure}" for offer in OFFERS for figure in OFFER_FIGURES))
"""Columns of the ``economics`` input, named as in the contract."""

PROBABILITY_TOLERANCE: Final = 1e-5
SPEND_TOLERANCE: Final = 1e-4
"""How far a graph may be from scikit-learn, or from its golden rows: absolute for probabilities and thresholds,
relative for spend."""

Arrays = dict[str, npt.NDArray[Any]]


class BundleError(Exception):
    """A bundle is missing, torn, tampered with or not of this version; the message says which and why."""


class Manifest(BaseModel):
    """``manifest.json``: what a bundle is, where it comes from and how good it was on later data."""

    model_config = ConfigDict(frozen=True)

    version: Annotated[str, Field(pattern=VERSION)]
    created: str
    config: str
    fingerprint: str
    features: list[Feature]
    interests: Interests = Interests()
    derived: list[str]
    inputs: dict[str, list[int | str]]
    outputs: list[str]
    segments: list[str] = []
    segment_edges: dict[str, list[float]] = {}
    labels: dict[str, str] = {}
    cutoffs: dict[str, list[str]]
    metrics: dict[str, Any]
    economics: dict[str, Annotated[float, Field(ge=0, allow_inf_nan=False)]]
    own_figures: list[str] = []
    baseline: list[Annotated[float, Field(allow_inf_nan=False)] | None] | None = None
    model_sha256: str
    golden_sha256: str
    libraries: dict[str, str]
    source: dict[str, Any]


def defaults(manifest: Manifest) -> npt.NDArray[np.float64]:
    """A row of the ``economics`` input where a caller names nothing; NaN for a figure that is each customer's own."""
    own = set(manifest.own_figures)
    return np.array([np.nan if name in own else manifest.economics[name] for name in ECONOMICS])


@dataclass(frozen=True)
class Bundle:
    """A bundle read and checked: the graph's bytes, and golden rows (inputs and expected outputs by name)."""

    manifest: Manifest
    model: bytes
    golden: Arrays


def publish(
    registry: Path,
    manifest: Manifest,
    model: bytes,
    golden: bytes,
    beside: Mapping[str, bytes] | None = None,
    *,
    activate: bool = True,
) -> Path:
    """Write a version whole or not at all, and point ``current`` at it in one step; OSError where that fails.

    beside: files by name that no server reads; activate: else ``current`` stays, unless there is none yet.
    """
    registry.mkdir(parents=True, exist_ok=True)
    target = registry / manifest.version
    if target.exists():
        raise FileExistsError(errno.EEXIST, "this version exists already", str(target))
    staging = Path(tempfile.mkdtemp(prefix=".staging-", dir=registry))
    ours = staging  # the only folder that a failure may remove: another process may publish meanwhile
    try:
        staging.chmod(0o755)
        fields = json.loads(manifest.model_dump_json(exclude_none=True))
        text = json.dumps(fields | {OWN_HASH: own_hash(fields)}, indent=2) + "\n"
        files = {MODEL_FILE: model, GOLDEN_FILE: golden, **(beside or {}), MANIFEST_FILE: text.encode()}
        for name, content in files.items():
            write_atomically(staging / name, content, durable=True)
        ours = staging.rename(target)
        if activate or not os.path.lexists(registry / CURRENT):
            point(registry, CURRENT, manifest.version)
    except BaseException:
        shutil.rmtree(ours, ignore_errors=True)
        raise
    return target


def add_files(folder: Path, files: Mapping[str, bytes]) -> None:
    """Add files that no server reads to a published version, one after the other.

    Each appears whole or not at all, even if the process is killed, and only after those before it.

    Raises:
        OSError: A file cannot be written.
    """
    for name, content in files.items():
        write_atomically(folder / name, content, durable=True)


def point(registry: Path, name: str, version: str) -> None:
    """Let a link name a version, in one step; OSError where that fails."""
    link = Path(tempfile.mkdtemp(prefix=f".{name}-", dir=registry)) / name
    try:
        link.symlink_to(version)
        link.replace(registry / name)
    finally:
        link.unlink(missing_ok=True)
        link.parent.rmdir()


def read(registry: Path, version: str = CURRENT) -> Bundle:
    """Read a version and check its hashes, names and fingerprint; BundleError says what is wrong."""
    folder = (registry / version).resolve()  # once: `current` may move on while this reads
    if not folder.is_dir():
        raise BundleError(f"no bundle at {registry / version}: run 'tidemark fit CONFIG --registry {registry}' first")
    manifest = read_manifest(folder)
    model = _read_hashed(folder / MODEL_FILE, manifest.model_sha256)
    golden = _read_hashed(folder / GOLDEN_FILE, manifest.golden_sha256)
    try:
        with np.load(io.BytesIO(golden), allow_pickle=False) as arrays:
            return Bundle(manifest, model, dict(arrays))
    except Exception as error:  # zipfile, zlib and numpy have each their own for a file that is none
        raise BundleError(f"{folder.name}: {GOLDEN_FILE} is no list of arrays ({type(error).__name__})") from error


def sha256(data: bytes) -> str:
    """Hex digest as it stands in the manifest."""
    return hashlib.sha256(data).hexdigest()


def own_hash(fields: Mapping[str, Any]) -> str:
    """Hex digest of a manifest's fields, but for the digest itself."""
    return sha256(json.dumps({key: fields[key] for key in sorted({*fields} - {OWN_HASH})}, sort_keys=True).encode())


def read_manifest(folder: Path) -> Manifest:
    """The manifest of a bundle's folder, checked for itself; BundleError says what is wrong."""
    try:
        data = (folder / MANIFEST_FILE).read_bytes()
        manifest = Manifest.model_validate_json(data)
    except OSError as error:
        raise BundleError(f"{folder.name}: {MANIFEST_FILE} cannot be read ({type(error).__name__})") from error
    except ValidationError as error:
        raise BundleError(f"{folder.name}: {MANIFEST_FILE} is not valid: {first_problem(error)}") from error
    if fingerprint(manifest.features) != manifest.fingerprint:
        raise BundleError(f"{folder.name}: the fingerprint does not belong to the feature definitions")
    if manifest.baseline is not None and len(manifest.baseline) != len(manifest.features):
        raise BundleError(f"{folder.name}: the baseline is not one value per feature")
    if missing := set(ECONOMICS).difference(manifest.economics):
        raise BundleError(f"{folder.name}: the economics lack {', '.join(sorted(missing))}")
    if set(manifest.inputs) != set(INPUTS) or not set(OUTPUTS) <= set(manifest.outputs):
        raise BundleError(f"{folder.name}: the graph's inputs or outputs are not the ones this release serves")
    fields = json.loads(data)
    if fields.get(OWN_HASH) != own_hash(fields):
        raise BundleError(
            f"{folder.name}: {MANIFEST_FILE} is torn or was changed: it says more or less than its sha256"
        )
    return manifest


def _read_hashed(path: Path, expected: str) -> bytes:
    try:
        data = path.read_bytes()
    except OSError as error:
        raise BundleError(f"{path.parent.name}: {path.name} cannot be read ({type(error).__name__})") from error
    if sha256(data) != expected:
        raise BundleError(f"{path.parent.name}: {path.name} is torn or was changed: its sha256 is not the manifest's")
    return data
