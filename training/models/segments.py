"""Segments: k-means on a few traits of behaviour with names in plain words, and RFM; both exported in the graph.

In the graph the nearest centre is the largest of ``x . c - |c|^2 / 2``: with standardising multiplied in that is one
Gemm and one ArgMax on the features as they are.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Literal

import numpy as np
import numpy.typing as npt
from sklearn.cluster import KMeans
from sklearn.metrics import silhouette_score
from threadpoolctl import threadpool_limits

from feature_store.state.layout import Floats
from training.evidence import Segment
from training.graph.builder import GraphBuilder
from training.graph.features import FeatureSpec
from training.models.rfm import GROUPS, Codes, Part, Rfm, fit_rfm, group
from training.models.segment_names import name_segments
from training.models.segment_variables import Features, Trait, attributes, behaviour

FEWEST: Final = 3
MOST: Final = 7
CLEARLY_WORSE: Final = 0.1
"""Silhouette by which a number of segments may stay behind the best."""
ENOUGH: Final = 0.9
"""Of what the best number of segments explains of value and risk: more segments than that need are not worth it."""
LEAST_SHARE: Final = 0.03
LEAST_ROWS: Final = 20
"""Customers per segment, on average, below which there are fewer segments."""
LEAST_TRAITS: Final = 2
"""Traits of behaviour below which attributes are taken as well."""
FIT_ROWS: Final = 20_000
SILHOUETTE_ROWS: Final = 2_000

PULLS: Final = {"tenure": 0.5}
"""Deviations of a role that count less: for most customers tenure says when the shop's records begin."""
LEAST_OWN: Final = 0.2
"""Deviation of what frequency leaves of monetary value, below which they say the same."""

Scheme = Literal["k-means", "RFM"]
SEGMENT: Final = "segment"
RFM: Final = "rfm"


@dataclass(frozen=True)
class Segments:
    """Fitted segments.

    names: of the segments by index, the most valuable first; traits: what they are made of; weights [features, traits]
    and offset [traits]: how features become standardised traits; kmeans: fitted on those, with centres in the order of
    the names; rfm: None where it cannot be told.
    """

    names: list[str]
    traits: Sequence[Trait]
    weights: Floats
    offset: Floats
    kmeans: KMeans
    rfm: Rfm | None

    def predict(self, features: Features) -> dict[str, Codes]:
        """What the graph must give, by output: the segment's index [n] by scikit-learn, and RFM numbers [n]."""
        nearest = self.kmeans.predict(_standardised(features, self.weights, self.offset)).astype(np.int64)
        return {SEGMENT: nearest} | ({} if self.rfm is None else {RFM: self.rfm.predict(features)})

    def edges(self) -> dict[str, list[float]]:
        """Edges between the scores of RFM, by part, as they are told (days, events and spend a month)."""
        told: dict[str, list[float]] = {}
        for score in [] if self.rfm is None else self.rfm.scores:
            trait = next(trait for trait in self.traits if trait.role == score.part)
            row = np.zeros((len(score.edges), len(self.weights)), dtype=np.float32)
            row[:, score.column] = score.edges
            told[score.part] = trait.told(row).tolist()
        return told


def fit_segments(
    features: Features, spec: FeatureSpec, event: str, *, value: Floats, risk: Floats, seed: int
) -> Segments:
    """Segments of training rows: features float32 ``[n, names]`` without NaN, n at least 1.

    event: whose recency and frequency count; value [n]: what a customer is worth (expected spend); risk [n]: churn
    probability, or 1 - propensity. The two order the segments, and choose the attributes where there is no behaviour.
    """
    traits = [trait for trait in behaviour(spec, event) if np.ptp(features[:, trait.column]) > 0]
    columns: dict[Part, int] = {
        trait.role: trait.column for trait in traits if trait.role in ("recency", "frequency", "monetary")
    }
    if len(traits) < LEAST_TRAITS:
        traits += attributes(spec, features, [value, risk])
    weights, offset = _standardising(features, traits)
    rows = _sample(len(features), FIT_ROWS, seed)
    kmeans = _fit_kmeans(_standardised(features[rows], weights, offset), [value[rows], risk[rows]], seed)

    nearest = kmeans.predict(_standardised(features, weights, offset))
    kept = [i for i in range(len(kmeans.cluster_centers_)) if np.any(nearest == i)]
    order = sorted(kept, key=lambda i: (-value[nearest == i].mean(), risk[nearest == i].mean(), i))
    kmeans.cluster_centers_ = np.ascontiguousarray(kmeans.cluster_centers_[order])
    told = np.column_stack([trait.told(features) for trait in traits] or [np.zeros(len(features))])
    means = np.array([_means(told[nearest == i]) for i in order])
    places = kmeans.cluster_centers_ / _pulls(traits)
    names = name_segments(traits, places, means, _means(told))
    return Segments(names, traits, weights, offset, kmeans, fit_rfm(features, columns))


def add_segments(graph: GraphBuilder, segments: Segments, features: str) -> None:
    """Outputs ``segment`` (int64 [n]) and, where there is one, ``rfm`` (whole float32 [n]) of float32 ``features``.

    In float64, as scikit-learn does it: float32 would put a customer between two centres into the other segment.
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
    """The segments of both schemes and what is typical of them, on rows with their outcomes [n]; no empty ones."""
    found = segments.predict(features)
    told = {trait.label: trait.told(features) for trait in segments.traits if trait.role != "missing"}
    told |= {f"{t.label} not known": t.told(features) for t in segments.traits if t.role == "missing"}
    schemes: list[tuple[Scheme, list[str], Codes]] = [("k-means", segments.names, found[SEGMENT])]
    if RFM in found:
        groups = np.array([GROUPS.index(group(code)) for code in found[RFM].tolist()])
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
                        profile={label: float(_means(values[own])) for label, values in told.items()},
                    )
                )
    return tables


def _standardising(features: Features, traits: Sequence[Trait]) -> tuple[Floats, Floats]:
    """Weights ``[features, traits]`` and offset ``[traits]`` that give each trait mean 0 and its pull as deviation.

    A missing value counts as the mean of those known: what stands in its place is moved there by the flag's weight. Of
    monetary value only what frequency does not say is kept, which is the size of baskets.
    """
    width = max(1, len(traits))  # without traits all customers are at 0, in one segment
    weights, offset = np.zeros((features.shape[1], width)), np.zeros(width)
    for at, trait in enumerate(traits):
        values = features[:, trait.column].astype(np.float64)
        missing = np.zeros(len(values), dtype=bool) if trait.flag is None else features[:, trait.flag] > 0
        known = values if missing.all() else values[~missing]
        mean, scale = known.mean(), known.std() or 1.0
        weights[trait.column, at], offset[at] = 1 / scale, -mean / scale
        if missing.any() and trait.flag is not None:
            weights[trait.flag, at] = (mean - values[missing].mean()) / scale
    roles = [trait.role for trait in traits]
    if "frequency" in roles and "monetary" in roles:
        often, much = roles.index("frequency"), roles.index("monetary")
        points = _standardised(features, weights, offset)
        shared = float((points[:, often] * points[:, much]).mean())
        own = np.sqrt(max(1 - shared**2, 0.0))
        for part in (weights, offset):
            left = (part[..., much] - shared * part[..., often]) / max(own, LEAST_OWN)
            part[..., much] = left if own >= LEAST_OWN else 0.0
    return weights * _pulls(traits), offset * _pulls(traits)


def _pulls(traits: Sequence[Trait]) -> Floats:
    return np.array([PULLS.get(trait.role, 1.0) for trait in traits] or [1.0])


def _standardised(features: Features, weights: Floats, offset: Floats) -> Floats:
    return np.asarray(features.astype(np.float64) @ weights + offset)


def _fit_kmeans(points: Floats, guides: Sequence[Floats], seed: int) -> KMeans:
    """K-means with the fewest segments that are about as distinct as any and tell the guides [n] apart, none tiny."""
    distinct = len(np.unique(points, axis=0))
    most = min(MOST, distinct, max(1, len(points) // LEAST_ROWS))
    with threadpool_limits(limits=1):  # the order of sums, and with it the last bits, would change with the threads
        fitted = [_kmeans(points, k, seed) for k in range(min(FEWEST, most), most + 1)]
        quality = [_quality(points, kmeans, seed) for kmeans in fitted]
    good = [kmeans for kmeans, found in zip(fitted, quality, strict=True) if found >= max(quality) - CLEARLY_WORSE]
    explained = [sum(_explained(guide, kmeans.labels_) for guide in guides) for kmeans in good]
    return good[next(i for i, found in enumerate(explained) if found >= ENOUGH * max(explained))]


def _kmeans(points: Floats, k: int, seed: int) -> KMeans:
    return KMeans(k, n_init=4, random_state=seed).fit(points)


def _quality(points: Floats, kmeans: KMeans, seed: int) -> float:
    """Mean silhouette of a sample, -1 where a segment is tiny or there is nothing to compare."""
    rows = _sample(len(points), SILHOUETTE_ROWS, seed)
    labels = kmeans.labels_[rows]
    shares = np.bincount(kmeans.labels_) / len(points)
    if shares.min() < LEAST_SHARE or not 1 < len(np.unique(labels)) < len(rows):
        return -1.0
    return float(silhouette_score(points[rows], labels))


def _explained(guide: Floats, labels: npt.NDArray[np.int32]) -> float:
    """Share of the variance of a guide's ranks that lies between the segments."""
    rank = np.unique(guide, return_inverse=True)[1].astype(np.float64)
    within = sum(float(rank[labels == label].var() * (labels == label).mean()) for label in np.unique(labels))
    return 1 - within / float(rank.var()) if rank.any() else 0.0


def _sample(rows: int, most: int, seed: int) -> npt.NDArray[np.intp]:
    every = np.arange(rows)
    return every if rows <= most else np.sort(np.random.default_rng(seed).choice(every, most, replace=False))


def _means(told: Floats) -> Floats:
    """Means of the known values, by column; 0 where none is."""
    known = ~np.isnan(told)
    return np.asarray(np.where(known, told, 0.0).sum(axis=0) / np.maximum(known.sum(axis=0), 1))
