"""Segments: k-means on a few variables of behaviour, with plain names, and RFM; both are part of the graph.

The nearest centre is the one with the largest ``x . c - |c|^2 / 2``. With standardisation folded into the weights this
is one Gemm and one ArgMax on the features.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Literal

import numpy as np
import numpy.typing as npt
from sklearn.cluster import KMeans
from sklearn.metrics import silhouette_score

from feature_store.state.layout import Floats
from training.arrays import Features
from training.evidence import Segment
from training.graph.builder import GraphBuilder
from training.graph.features import FeatureSpec
from training.models.rfm import GROUPS, Codes, Part, Rfm, fit_rfm, group
from training.models.segment_names import name_segments
from training.models.segment_variables import SegmentVariable, attributes, behaviour
from training.statistics import random_rows

MIN_SEGMENTS: Final = 3
MAX_SEGMENTS: Final = 7
CLEARLY_WORSE: Final = 0.1
"""Maximum difference in silhouette from the best number of segments."""
ENOUGH: Final = 0.9
"""Share of the best explained variance of value and risk that is enough; more segments are not worth it."""
MIN_SHARE: Final = 0.03
MIN_ROWS: Final = 20
"""Minimum average number of customers per segment."""
MIN_VARIABLES: Final = 2
"""Minimum number of variables of behaviour; with fewer, attributes are used as well."""
FIT_ROWS: Final = 20_000
SILHOUETTE_ROWS: Final = 2_000

VARIABLE_WEIGHTS: Final = {"tenure": 0.5}
"""Standard deviation of a variable by role (otherwise 1): tenure counts less, because for most customers it only shows
when the records begin."""
MIN_REMAINDER: Final = 0.2
"""Minimum standard deviation of monetary value after frequency is regressed out; below it, the two are redundant."""

Scheme = Literal["k-means", "RFM"]
SEGMENT: Final = "segment"
RFM: Final = "rfm"


@dataclass(frozen=True)
class Segments:
    """Fitted segments.

    Attributes:
        names: Of the segments by index, the most valuable first.
        variables: What the segments are made of.
        weights: ``[features, variables]``, from features to standardised variables.
        offset: ``[variables]``, added to them.
        kmeans: Fitted on the standardised variables, with centres in the order of the names.
        rfm: None if the features do not allow it.
    """

    names: list[str]
    variables: Sequence[SegmentVariable]
    weights: Floats
    offset: Floats
    kmeans: KMeans
    rfm: Rfm | None

    def predict(self, features: Features) -> dict[str, Codes]:
        """The outputs that the graph must have: segment indexes ``[n]`` by scikit-learn, and RFM numbers ``[n]``."""
        nearest = self.kmeans.predict(_standardised(features, self.weights, self.offset)).astype(np.int64)
        return {SEGMENT: nearest} | ({} if self.rfm is None else {RFM: self.rfm.predict(features)})

    def edges(self) -> dict[str, list[float]]:
        """Edges between the RFM scores by part, in days, events a month and spend a month."""
        edges: dict[str, list[float]] = {}
        for score in [] if self.rfm is None else self.rfm.scores:
            variable = next(variable for variable in self.variables if variable.role == score.part)
            row = np.zeros((len(score.edges), len(self.weights)), dtype=np.float32)
            row[:, score.column] = score.edges
            edges[score.part] = variable.values(row).tolist()
        return edges


def fit_segments(
    features: Features, spec: FeatureSpec, event: str, *, value: Floats, risk: Floats, seed: int
) -> Segments:
    """Fit segments on training rows.

    Args:
        features: Float32 ``[n, names]`` without NaN; n is at least 1.
        spec: What the features are.
        event: The event type of recency and frequency.
        value: Expected spend ``[n]``.
        risk: Churn probability ``[n]``, or 1 - propensity. Value and risk order the segments, and choose attributes if
            there are too few variables of behaviour.
        seed: Of k-means and the samples.
    """
    variables = [variable for variable in behaviour(spec, event) if np.ptp(features[:, variable.column]) > 0]
    columns: dict[Part, int] = {
        variable.role: variable.column
        for variable in variables
        if variable.role in ("recency", "frequency", "monetary")
    }
    if len(variables) < MIN_VARIABLES:
        variables += attributes(spec, features, [value, risk])
    weights, offset = _standardising(features, variables)
    rows = random_rows(len(features), FIT_ROWS, seed)
    kmeans = _fit_kmeans(_standardised(features[rows], weights, offset), [value[rows], risk[rows]], seed)

    nearest = kmeans.predict(_standardised(features, weights, offset))
    kept = [i for i in range(len(kmeans.cluster_centers_)) if np.any(nearest == i)]
    order = sorted(kept, key=lambda i: (-value[nearest == i].mean(), risk[nearest == i].mean(), i))
    kmeans.cluster_centers_ = np.ascontiguousarray(kmeans.cluster_centers_[order])
    values = np.column_stack([variable.values(features) for variable in variables] or [np.zeros(len(features))])
    means = np.array([_means(values[nearest == i]) for i in order])
    places = kmeans.cluster_centers_ / _variable_weights(variables)
    names = name_segments(variables, places, means, _means(values))
    return Segments(names, variables, weights, offset, kmeans, fit_rfm(features, columns))


def add_segments(graph: GraphBuilder, segments: Segments, features: str) -> None:
    """Add the outputs ``segment`` (int64 ``[n]``) and, if available, ``rfm`` (whole numbers, float32 ``[n]``).

    Computed in float64 like scikit-learn: with float32 a customer between two centres could get the other segment.
    """
    centres = segments.kmeans.cluster_centers_
    weights = segments.weights @ centres.T
    offset = centres @ segments.offset - (centres**2).sum(axis=1) / 2
    exact = graph.add("Cast", features, to=graph.float64)
    nearness = graph.add("Gemm", exact, graph.constant(weights), graph.constant(offset))
    graph.output(SEGMENT, graph.add("ArgMax", nearness, axis=1, keepdims=0), kind=graph.int64)
    if segments.rfm is not None:
        graph.output(RFM, segments.rfm.add_to(graph, features), 0)


def profile(
    segments: Segments,
    features: Features,
    churn: npt.NDArray[np.bool_] | None,
    propensity: npt.NDArray[np.bool_] | None,
    spend: Floats | None,
) -> list[Segment]:
    """Profile the segments of both schemes on rows with known outcomes ``[n]``; empty segments are left out."""
    predicted = segments.predict(features)
    values_by_label = {
        variable.label: variable.values(features) for variable in segments.variables if variable.role != "missing"
    }
    values_by_label |= {f"{t.label} not known": t.values(features) for t in segments.variables if t.role == "missing"}
    schemes: list[tuple[Scheme, list[str], Codes]] = [("k-means", segments.names, predicted[SEGMENT])]
    if RFM in predicted:
        groups = np.array([GROUPS.index(group(code)) for code in predicted[RFM].tolist()])
        schemes.append(("RFM", list(GROUPS), groups))
    tables = []
    for scheme, names, member in schemes:
        for at, name in enumerate(names):
            own = member == at
            if own.any():
                tables.append(
                    Segment(
                        name=name,
                        scheme=scheme,
                        share=float(own.mean()),
                        churn_rate=None if churn is None else float(churn[own].mean()),
                        propensity_rate=None if propensity is None else float(propensity[own].mean()),
                        mean_spend=None if spend is None else float(spend[own].mean()),
                        profile={label: float(_means(values[own])) for label, values in values_by_label.items()},
                    )
                )
    return tables


def _standardising(features: Features, variables: Sequence[SegmentVariable]) -> tuple[Floats, Floats]:
    """Weights ``[features, variables]`` and offset ``[variables]`` of the standardisation.

    Each variable gets mean 0 and its VARIABLE_WEIGHTS as standard deviation. A missing value counts as the mean of the
    others: the weight of its flag moves the filled-in value there. Frequency is regressed out of monetary value, which
    leaves the size of the baskets.
    """
    width = max(1, len(variables))  # without variables all customers are at 0, in one segment
    weights, offset = np.zeros((features.shape[1], width)), np.zeros(width)
    for at, variable in enumerate(variables):
        values = features[:, variable.column].astype(np.float64)
        missing = np.zeros(len(values), dtype=bool) if variable.flag is None else features[:, variable.flag] > 0
        known = values if missing.all() else values[~missing]
        mean, scale = known.mean(), known.std() or 1.0
        weights[variable.column, at], offset[at] = 1 / scale, -mean / scale
        if missing.any() and variable.flag is not None:
            weights[variable.flag, at] = (mean - values[missing].mean()) / scale
    roles = [variable.role for variable in variables]
    if "frequency" in roles and "monetary" in roles:
        frequency, monetary = roles.index("frequency"), roles.index("monetary")
        points = _standardised(features, weights, offset)
        shared = float((points[:, frequency] * points[:, monetary]).mean())
        own = np.sqrt(max(1 - shared**2, 0.0))
        for part in (weights, offset):
            left = (part[..., monetary] - shared * part[..., frequency]) / max(own, MIN_REMAINDER)
            part[..., monetary] = left if own >= MIN_REMAINDER else 0.0
    return weights * _variable_weights(variables), offset * _variable_weights(variables)


def _variable_weights(variables: Sequence[SegmentVariable]) -> Floats:
    return np.array([VARIABLE_WEIGHTS.get(variable.role, 1.0) for variable in variables] or [1.0])


def _standardised(features: Features, weights: Floats, offset: Floats) -> Floats:
    return np.asarray(features.astype(np.float64) @ weights + offset)


def _fit_kmeans(points: Floats, guides: Sequence[Floats], seed: int) -> KMeans:
    """K-means with the smallest number of segments that are nearly as distinct as the best and explain the guides.

    Args:
        points: Standardised variables ``[n, variables]``.
        guides: What the segments should explain, each ``[n]``.
        seed: Of k-means and the sample for the silhouette.
    """
    distinct = len(np.unique(points, axis=0))
    largest = min(MAX_SEGMENTS, distinct, max(1, len(points) // MIN_ROWS))
    fitted = [_kmeans(points, k, seed) for k in range(min(MIN_SEGMENTS, largest), largest + 1)]
    quality = [_quality(points, kmeans, seed) for kmeans in fitted]
    good = [kmeans for kmeans, score in zip(fitted, quality, strict=True) if score >= max(quality) - CLEARLY_WORSE]
    explained = [sum(_explained(guide, kmeans.labels_) for guide in guides) for kmeans in good]
    return good[next(i for i, share in enumerate(explained) if share >= ENOUGH * max(explained))]


def _kmeans(points: Floats, k: int, seed: int) -> KMeans:
    return KMeans(k, n_init=4, random_state=seed).fit(points)


def _quality(points: Floats, kmeans: KMeans, seed: int) -> float:
    """Mean silhouette of a sample (Rousseeuw, 1987); -1 if a segment is tiny or there is only one."""
    rows = random_rows(len(points), SILHOUETTE_ROWS, seed)
    labels = kmeans.labels_[rows]
    shares = np.bincount(kmeans.labels_) / len(points)
    if shares.min() < MIN_SHARE or not 1 < len(np.unique(labels)) < len(rows):
        return -1.0
    return float(silhouette_score(points[rows], labels))


def _explained(guide: Floats, labels: npt.NDArray[np.int32]) -> float:
    """Share of the variance of a guide's ranks that is between the segments."""
    rank = np.unique(guide, return_inverse=True)[1].astype(np.float64)
    within = sum(float(rank[labels == label].var() * (labels == label).mean()) for label in np.unique(labels))
    return 1 - within / float(rank.var()) if rank.any() else 0.0


def _means(values: Floats) -> Floats:
    """Means of the known values by column; 0 for a column without any."""
    known = ~np.isnan(values)
    return np.asarray(np.where(known, values, 0.0).sum(axis=0) / np.maximum(known.sum(axis=0), 1))
