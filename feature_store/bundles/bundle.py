"""Model bundles: one folder per version in a registry, published atomically and checked whenever it is read.

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
"""Valid names of versions: also valid names of folders, and never a path out of the registry."""
MODEL_FILE: Final = "model.onnx"
MANIFEST_FILE: Final = "manifest.json"
GOLDEN_FILE: Final = "golden.npz"
MANIFEST_HASH: Final = "manifest_sha256"
"""Key of the manifest that holds the hash of its other fields."""

INPUTS: Final = ("state", "age", "economics")
OUTPUTS: Final = (
    "churn_probability",
    "propensity_probability",
    "expected_spend",
    "churn_threshold",
    "propensity_threshold",
    "churn_value_if_won",
    "propensity_value_if_won",
)
OFFERS: Final = ("churn", "propensity")
OFFER_FIGURES: Final = ("contact_cost", "offer_cost", "success_rate", "redemption_rate", "budget_price")
VALUE_IF_WON: Final = "value_if_won"
ECONOMICS: Final = (
    "margin",
    *(f"{offer}.{figure}" for offer in OFFERS for figure in OFFER_FIGURES),
    *(f"{offer}.{VALUE_IF_WON}" for offer in OFFERS),
)
"""Columns of the ``economics`` input, named as in the API. A value if won that is NaN is computed by the model."""

CONFIG_ECONOMICS: Final = tuple(name for name in ECONOMICS if not name.endswith(VALUE_IF_WON))
"""Those of them that a config, and so a manifest, has."""

PROBABILITY_TOLERANCE: Final = 1e-5
MONEY_TOLERANCE: Final = 1e-4
MONEY_OUTPUTS: Final = ("expected_spend", "churn_value_if_won", "propensity_value_if_won")
"""Largest difference allowed between a graph and scikit-learn, or its golden rows: absolute for probabilities and
thresholds, relative for amounts of money."""

FORMAT: Final = 2
"""Format of the bundles that this release writes and reads. In format 1, up to release 0.2, thresholds counted the
spend of all customers in place of the spend of those who are won, so their bundles are refused."""

Arrays = dict[str, npt.NDArray[Any]]


class BundleError(Exception):
    """A bundle is missing, damaged, altered or of another release; the message says which and why."""


class Manifest(BaseModel):
    """``manifest.json``: what a bundle contains, how it was made, and how well it predicted later data.

    Attributes:
        format: Format of the bundle. A server reads only the format of its release.
        version: Version of the bundle, which is also the name of its folder.
        created: Time of the fit.
        config: Name of the config.
        fingerprint: Fingerprint of the features. Only states with the same fingerprint are read.
        features: The features, each a slot of the state, with all that training has learnt about them.
        interests: Which events are views and purchases of items.
        derived: Names of the model features that the graph computes from the slots.
        inputs: Shapes of the graph's inputs by name.
        outputs: Names of the graph's outputs.
        segments: Names of the customer segments, in the order of the output ``segment``.
        segment_edges: Bounds of the fifths of recency, frequency and monetary value.
        labels: Definitions of the training labels, in words.
        cutoffs: Cut-offs of training, calibration and test.
        metrics: How well the models predicted the test rows.
        economics: The economics that thresholds use unless a call sends others.
        own_figures: Figures of the economics that each customer has an amount for.
        baseline: Slots of the typical customer, with which explanations compare; null for a slot without a value.
        model_sha256: Hash of ``model.onnx``.
        golden_sha256: Hash of ``golden.npz``.
        libraries: Versions of the libraries that the models were fitted with.
        source: What was read: numbers of events and customers, the time span, and rows that were left out.
    """

    model_config = ConfigDict(frozen=True)

    format: int = 1
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


def default_economics(manifest: Manifest) -> npt.NDArray[np.float64]:
    """A row of the ``economics`` input for a caller that sends no economics; NaN for figures computed per customer."""
    per_customer = {*manifest.own_figures, *(f"{offer}.{VALUE_IF_WON}" for offer in OFFERS)}
    return np.array([np.nan if name in per_customer else manifest.economics[name] for name in ECONOMICS])


@dataclass(frozen=True)
class Bundle:
    """A bundle that was read and checked: the graph, and golden rows (inputs and expected outputs by name)."""

    manifest: Manifest
    model: bytes
    golden: Arrays


def publish(
    registry: Path,
    manifest: Manifest,
    model: bytes,
    golden: bytes,
    extra_files: Mapping[str, bytes] | None = None,
    *,
    activate: bool = True,
) -> Path:
    """Write a version atomically, and point ``current`` at it.

    Args:
        registry: Created if it does not exist.
        manifest: Names the version.
        model: The ONNX graph.
        golden: The golden rows, as npz.
        extra_files: More files of the bundle, by name, which servers do not read.
        activate: Point ``current`` at the version; it is set in any case if there is no current version yet.

    Returns:
        The folder of the version.

    Raises:
        FileExistsError: The version exists.
        OSError: It cannot be written.
    """
    registry.mkdir(parents=True, exist_ok=True)
    target = registry / manifest.version
    if target.exists():
        raise FileExistsError(errno.EEXIST, "this version exists already", str(target))
    staging = Path(tempfile.mkdtemp(prefix=".staging-", dir=registry))
    created = staging  # the only folder to remove after a failure: another process may publish at the same time
    try:
        staging.chmod(0o755)
        fields = json.loads(manifest.model_dump_json(exclude_none=True))
        text = json.dumps(fields | {MANIFEST_HASH: manifest_hash(fields)}, indent=2) + "\n"
        files = {MODEL_FILE: model, GOLDEN_FILE: golden, **(extra_files or {}), MANIFEST_FILE: text.encode()}
        for name, content in files.items():
            write_atomically(staging / name, content, durable=True)
        created = staging.rename(target)
        if activate or not os.path.lexists(registry / CURRENT):
            set_link(registry, CURRENT, manifest.version)
    except BaseException:
        shutil.rmtree(created, ignore_errors=True)
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


def set_link(registry: Path, name: str, version: str) -> None:
    """Point a symbolic link of the registry at a version, atomically; OSError if that fails."""
    link = Path(tempfile.mkdtemp(prefix=f".{name}-", dir=registry)) / name
    try:
        link.symlink_to(version)
        link.replace(registry / name)
    finally:
        link.unlink(missing_ok=True)
        link.parent.rmdir()


def folder_of(registry: Path, version: str) -> Path:
    """The folder of a version; that of ``current`` if the registry has the version under that name alone."""
    folder, current = registry / version, registry / CURRENT
    if version != CURRENT and not folder.is_dir() and version_in(current) == version:
        return current
    return folder


def version_in(folder: Path) -> str | None:
    """The version that the manifest in a folder names; None if there is no manifest that can be used."""
    try:
        return read_manifest(folder).version
    except BundleError:
        return None


def read(registry: Path, version: str = CURRENT) -> Bundle:
    """Read a version and check its hashes, names and fingerprint; BundleError says what is wrong."""
    folder = folder_of(registry, version).resolve()  # only once: `current` may change in the meantime
    if not folder.is_dir():
        raise BundleError(_missing(registry, version))
    manifest = read_manifest(folder)
    model = _read_hashed(folder / MODEL_FILE, manifest.model_sha256)
    golden = _read_hashed(folder / GOLDEN_FILE, manifest.golden_sha256)
    try:
        with np.load(io.BytesIO(golden), allow_pickle=False) as arrays:
            return Bundle(manifest, model, dict(arrays))
    except Exception as error:  # zipfile, zlib and numpy raise different errors for a damaged file
        raise BundleError(f"{folder.name}: {GOLDEN_FILE} does not hold arrays ({type(error).__name__})") from error


def _missing(registry: Path, version: str) -> str:
    """Why there is no bundle of a version, and what to do."""
    if version == CURRENT and os.path.lexists(registry / CURRENT):
        return f"no bundle at {registry / CURRENT}: the link leads to no folder: point it at a version with ln -sfn"
    names = sorted(path.parent.name for path in registry.glob(f"[0-9A-Za-z]*/{MANIFEST_FILE}"))
    if version == CURRENT and names:
        return (
            f"{registry} has bundles but no link '{CURRENT}', which a copy may have left out: point it at one: "
            f"ln -s {names[-1]} {registry / CURRENT}"
        )
    return f"no bundle at {registry / version}: run 'tidemark fit CONFIG --registry {registry}' first"


def sha256(data: bytes) -> str:
    """SHA-256 as hex digits."""
    return hashlib.sha256(data).hexdigest()


def manifest_hash(fields: Mapping[str, Any]) -> str:
    """Hex digest of a manifest's fields, the digest itself left out."""
    return sha256(
        json.dumps({key: fields[key] for key in sorted({*fields} - {MANIFEST_HASH})}, sort_keys=True).encode()
    )


def read_manifest(folder: Path) -> Manifest:
    """The manifest in a bundle's folder, checked without the other files; BundleError says what is wrong."""
    try:
        data = (folder / MANIFEST_FILE).read_bytes()
        manifest = Manifest.model_validate_json(data)
    except OSError as error:
        raise BundleError(f"{folder.name}: {MANIFEST_FILE} cannot be read ({type(error).__name__})") from error
    except ValidationError as error:
        raise BundleError(f"{folder.name}: {MANIFEST_FILE} is not valid: {first_problem(error)}") from error
    if manifest.format != FORMAT:
        raise BundleError(
            f"{folder.name}: the bundle has format {manifest.format}, this release serves format {FORMAT}: "
            "fit it again, because what a customer is worth in the thresholds has changed"
            if manifest.format < FORMAT
            else f"{folder.name}: the bundle has format {manifest.format}, which a later release wrote"
        )
    if fingerprint(manifest.features) != manifest.fingerprint:
        raise BundleError(f"{folder.name}: the fingerprint does not match the feature definitions")
    if manifest.baseline is not None and len(manifest.baseline) != len(manifest.features):
        raise BundleError(f"{folder.name}: the baseline does not have one value per feature")
    if missing := set(CONFIG_ECONOMICS).difference(manifest.economics):
        raise BundleError(f"{folder.name}: the economics are missing {', '.join(sorted(missing))}")
    if set(manifest.inputs) != set(INPUTS) or not set(OUTPUTS) <= set(manifest.outputs):
        raise BundleError(f"{folder.name}: the graph's inputs or outputs are not the ones this release serves")
    fields = json.loads(data)
    if fields.get(MANIFEST_HASH) != manifest_hash(fields):
        raise BundleError(f"{folder.name}: {MANIFEST_FILE} is damaged or was changed: its sha256 does not match")
    return manifest


def _read_hashed(path: Path, expected: str) -> bytes:
    try:
        data = path.read_bytes()
    except OSError as error:
        raise BundleError(f"{path.parent.name}: {path.name} cannot be read ({type(error).__name__})") from error
    if sha256(data) != expected:
        raise BundleError(
            f"{path.parent.name}: {path.name} is damaged or was changed: its sha256 differs from the manifest"
        )
    return data
