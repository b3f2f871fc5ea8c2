"""The sections of the report: plots and tables, and the titles of sections without evidence."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any

from feature_store.bundles.bundle import Manifest
from training.evidence import Evidence, HoldoutRows, Policy, SlotStability
from training.report import plots_groups, plots_models, plots_money, plots_rows
from training.report.drawing import Picture, compact, plain
from training.report.words import saved

Rows = Mapping[str, HoldoutRows]

COST_METRICS = (
    "Expected savings: the share of the cost of wrong decisions that a threshold avoids, compared with the better of "
    "contacting everybody and nobody. EMPC: expected maximum profit per customer when ranking by probability, and the "
    "share of customers contacted for it."
)


@dataclass(frozen=True)
class Table:
    """A table of text cells; all columns except the first ``names`` are numbers."""

    caption: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    names: int = 1


@dataclass(frozen=True)
class Part:
    """A part of a section, with a heading unless that is empty."""

    heading: str = ""
    text: str = ""
    pictures: Sequence[Picture] = ()
    tables: Sequence[Table] = ()


@dataclass(frozen=True)
class Section:
    """A section; it is shown only if it has parts."""

    slug: str
    title: str
    lead: str
    parts: list[Part] = field(default_factory=list)


def sections(evidence: Evidence, rows: Rows) -> tuple[list[Section], list[str]]:
    """The sections in order, and the titles of those without evidence."""
    candidates = [
        _quality(rows),
        _money(evidence, rows),
        _rates(evidence),
        _treatment(evidence),
        _splits(evidence),
        _trials(evidence),
        _features(evidence),
        _importance(evidence),
        _robustness(evidence),
        _segments(evidence),
        _tags(evidence),
        _audit(evidence),
    ]
    shown = [section for section in candidates if section.parts]
    return shown, [section.title for section in candidates if not section.parts]


def _quality(rows: Rows) -> Section:
    section = Section(
        "quality",
        "How well does it predict?",
        "On rows that the models have not seen: later cut-offs, or for a snapshot a random sample.",
    )
    section.parts.extend(Part(offer, pictures=plots_rows.plots_of_rows(offer, test)) for offer, test in rows.items())
    return section


def _money(evidence: Evidence, rows: Rows) -> Section:
    section = Section(
        "money",
        "Does acting on it pay?",
        "Profit is computed from observed outcomes, the model's value of each customer and the assumed rates. All "
        "policies contact the same number of customers.",
    )
    for offer, test in rows.items():
        policies = [policy for policy in evidence.policies if policy.offer == offer]
        pictures = [plots_money.profit(offer, policies), plots_money.ahead(offer, policies)] if policies else []
        tables = (
            [_policy_table(offer, policies, float((test.probability >= test.threshold).mean()))] if policies else []
        )
        text = "" if policies else "No other policies were compared."
        drawn = [picture for picture in [*pictures, plots_money.thresholds(offer, test)] if picture]
        section.parts.append(Part(offer, text, drawn, tables))
    if evidence.costs:
        section.parts.append(Part("Cost-sensitive metrics", COST_METRICS, tables=[_cost_metrics(evidence.costs)]))
    return section


def _cost_metrics(costs: Mapping[str, float]) -> Table:
    rows = [(plain(name.replace("_", " ")), f"{figure:,.4g}") for name, figure in costs.items()]
    return Table("Without a budget, on the test rows", ("metric", "value"), rows)


def _policy_table(offer: str, policies: Sequence[Policy], share: float) -> Table:
    nearest = min((policy.budget_share for policy in policies), key=lambda budget: abs(budget - share))
    return Table(
        f"{offer.capitalize()}: policies with {nearest:.0%} of the customers contacted, closest to the share of alerts "
        f"({share:.1%})",
        ("policy", "contacts", "expected profit", "realised profit", "95%", "dynamic threshold earns more by", "95%"),
        [
            (
                plain(policy.policy),
                f"{policy.contacts:,.0f}",
                compact(policy.expected),
                compact(policy.realised),
                _interval(policy.low, policy.high),
                "" if policy.ahead is None else compact(policy.ahead),
                "" if policy.ahead is None else _interval(policy.ahead_low or 0.0, policy.ahead_high or 0.0),
            )
            for policy in policies
            if policy.budget_share == nearest
        ],
    )


def _rates(evidence: Evidence) -> Section:
    section = Section(
        "rates",
        "What if the assumed rates are wrong?",
        "Success and redemption rates are assumptions. Each square assumes a different pair, tunes the best single "
        "threshold on calibration data, and compares both on the test cut-offs.",
    )
    section.parts.extend(
        Part(pictures=[plots_money.grid(offer, cells)]) for offer, cells in _by(evidence.grid, "offer")
    )
    return _joined(section)


def _treatment(evidence: Evidence) -> Section:
    section = Section("treatment", "What does the offer change?", "Measured on data in which the offer was randomised.")
    if evidence.treatment:
        table = Table(
            "Value per customer",
            ("policy", "estimator", "value", "95%"),
            [
                (plain(v.policy), plain(v.estimator), f"{v.value:.4g}", _interval(v.low, v.high))
                for v in evidence.treatment
            ],
            names=2,
        )
        section.parts.append(Part(pictures=[plots_money.treatment(evidence.treatment)], tables=[table]))
    return section


def _splits(evidence: Evidence) -> Section:
    section = Section("splits", "How optimistic is a random split?", "The same models evaluated with both splits.")
    if evidence.optimism:
        section.parts.append(Part(pictures=[plots_models.optimism(evidence.optimism)]))
    return section


def _trials(evidence: Evidence) -> Section:
    section = Section(
        "trials",
        "Which models were compared",
        "By cross-validation on training data: folds in time, or for a snapshot random folds.",
    )
    if evidence.trials:
        pictures = [plots_models.trials(target, trials) for target, trials in _by(evidence.trials, "target")]
        table = Table(
            "Candidate models",
            ("target", "model", "loss", "above the best", "standard error", "chosen"),
            [
                (
                    t.target,
                    plain(t.model),
                    f"{t.loss:.4f}",
                    f"{t.behind:.4f}",
                    f"{t.error:.4f}",
                    "yes" if t.chosen else "",
                )
                for t in evidence.trials
            ],
            names=2,
        )
        section.parts.append(Part(pictures=pictures, tables=[table]))
    return section


def _features(evidence: Evidence) -> Section:
    section = Section("features", "How many features are needed", _candidates(evidence))
    if evidence.ladder:
        targets = dict.fromkeys(target for subset in evidence.ladder for target in subset.behind)
        pictures = [plots_models.feature_subsets(target, evidence.ladder) for target in targets]
        chosen = [", ".join(map(plain, subset.slots)) for subset in evidence.ladder if subset.chosen]
        text = saved(evidence.ladder) + (f" They are {chosen[0]}." if chosen else "")
        section.parts.append(Part("", text, pictures))
    if evidence.stability:
        section.parts.append(_stability(evidence.stability))
    return section


def _stability(lines: Sequence[SlotStability]) -> Part:
    text = (
        "The features were ranked again on random halves of the customers. Sums of one event with different half-lives "
        "are nearly the same: which of them is chosen may be chance, whether one of the group is should not be."
    )
    table = Table(
        "How often each feature is chosen on half of the customers",
        ("feature", "group", "feature chosen", "group chosen", "used"),
        [
            (
                plain(line.slot),
                plain(line.group),
                f"{line.frequency:.0%}",
                f"{line.group_frequency:.0%}",
                "yes" if line.chosen else "",
            )
            for line in lines
        ],
        names=2,
    )
    return Part("Stability", text, tables=[table])


def _candidates(evidence: Evidence) -> str:
    if not evidence.candidates:
        return "Loss against the number of features."
    return f"Of {evidence.candidates:,} candidate features, {evidence.earned_nothing:.0%} were dropped."


def _importance(evidence: Evidence) -> Section:
    section = Section(
        "importance",
        "Which features matter",
        "Quality lost on the test rows when the values of a feature are shuffled among the rows.",
    )
    section.parts.extend(
        Part(pictures=[plots_models.importance(target, ranked)])
        for target, ranked in _by(evidence.importance, "target")
    )
    return _joined(section)


def _robustness(evidence: Evidence) -> Section:
    section = Section(
        "robustness", "What if the data is damaged?", "With missing values, lost events and duplicated events."
    )
    section.parts.extend(
        Part(pictures=[plots_models.robustness(offer, damage)]) for offer, damage in _by(evidence.robustness, "offer")
    )
    return _joined(section)


def _segments(evidence: Evidence) -> Section:
    section = Section("segments", "Customer segments", "Segments of the test customers.")
    for scheme, segments in _by(evidence.segments, "scheme"):
        pictures = [plots_groups.sizes(scheme, segments), plots_groups.profile(scheme, segments)]
        table = Table(
            f"Segments by {scheme}",
            ("number", "segment", "share", "churn rate", "propensity rate", "mean spend"),
            [
                (
                    str(n),
                    plain(s.name),
                    f"{s.share:.1%}",
                    _rate(s.churn_rate),
                    _rate(s.propensity_rate),
                    _amount(s.mean_spend),
                )
                for n, s in enumerate(segments, start=1)
            ],
            names=2,
        )
        section.parts.append(Part(scheme, pictures=[picture for picture in pictures if picture], tables=[table]))
    return section


def _tags(evidence: Evidence) -> Section:
    section = Section(
        "tags", "Redundant attributes", "Binary attributes that follow from others need not be collected."
    )
    if evidence.tags:
        cost = ", ".join(f"{plain(name)} {lost:.4g}" for name, lost in evidence.tags_cost.items())
        table = Table(
            "Binary attributes",
            ("attribute", "implied by", "support", "confidence", "cluster", "kept"),
            [
                (
                    plain(t.tag),
                    ", ".join(map(plain, t.said_by)),
                    f"{t.support:.1%}",
                    f"{t.confidence:.1%}",
                    str(t.cluster),
                    "yes" if t.kept else "",
                )
                for t in evidence.tags
            ],
            names=2,
        )
        left_out = sum(not tag.kept for tag in evidence.tags)
        text = f"{left_out} of {len(evidence.tags)} can be left out." + (f" Loss in the folds: {cost}." if cost else "")
        section.parts.append(Part("", text, [plots_groups.redundant_attributes(evidence.tags)], [table]))
    return section


def _audit(evidence: Evidence) -> Section:
    section = Section(
        "audit",
        "Findings of the data audit",
        "A fatal finding stops training; check the warnings; notes are for information.",
    )
    if evidence.audit:
        ranked = sorted(evidence.audit, key=lambda finding: ("fatal", "warning", "note").index(finding.severity))
        table = Table(
            "Findings",
            ("severity", "check", "where", "problem", "fix", "share"),
            [
                (f.severity, plain(f.check), plain(f.where), plain(f.message), plain(f.fix), _rate(f.share))
                for f in ranked
            ],
            names=5,
        )
        section.parts.append(Part(tables=[table]))
    return section


def card(manifest: Manifest) -> list[Table]:
    """The tables of the model card."""
    source, cutoffs = manifest.source, manifest.cutoffs
    spend = manifest.metrics.get("spend", {})
    return [
        Table("Data", ("item", "value"), [(name.replace("_", " "), _plainly(value)) for name, value in source.items()]),
        Table(
            "Cut-offs",
            ("block", "number", "first", "last"),
            [
                (block, str(len(times)), *((times[0][:10], times[-1][:10]) if times else ("", "")))
                for block, times in cutoffs.items()
            ],
        ),
        Table("Labels", ("target", "definition"), list(manifest.labels.items()), names=2),
        Table("Economics", ("item", "value"), [(name, f"{figure:g}") for name, figure in manifest.economics.items()]),
        Table(
            "Expected spend",
            ("metric", "value"),
            [(name.replace("_", " "), _plainly(value)) for name, value in spend.items()],
        ),
        Table(
            "Features of the model",
            ("name", "aggregate", "event"),
            [_feature(feature) for feature in manifest.features],
            names=3,
        ),
        Table(
            "Versions and hashes",
            ("item", "value"),
            [
                ("bundle", manifest.version),
                ("config", plain(manifest.config)),
                ("created", manifest.created),
                ("fingerprint of the features", manifest.fingerprint),
                ("sha256 of model.onnx", manifest.model_sha256),
                ("sha256 of golden.npz", manifest.golden_sha256),
                *manifest.libraries.items(),
            ],
            names=2,
        ),
    ]


def _feature(feature: Any) -> tuple[str, str, str]:
    return plain(feature.name), str(feature.aggregate), plain(str(feature.event or ""))


def _by(table: Sequence[Any], key: str) -> Iterator[tuple[str, list[Any]]]:
    """Group the lines of a table by a field, in the order of first appearance."""
    order = list(dict.fromkeys(getattr(line, key) for line in table))
    ranked = sorted(table, key=lambda line: order.index(getattr(line, key)))
    for name, lines in groupby(ranked, key=lambda line: getattr(line, key)):
        yield name, list(lines)


def _joined(section: Section) -> Section:
    """Merge the parts of a section so that their pictures are side by side."""
    pictures = [picture for part in section.parts for picture in part.pictures]
    section.parts[:] = [Part(pictures=pictures)] if pictures else []
    return section


def _interval(low: float, high: float) -> str:
    return f"{compact(low)} to {compact(high)}"


def _rate(share: float | None) -> str:
    return "" if share is None else f"{share:.1%}"


def _amount(amount: float | None) -> str:
    return "" if amount is None else f"{amount:,.2f}"


def _plainly(value: object) -> str:
    """A value of the manifest as text: short numbers, and dictionaries as lists."""
    if isinstance(value, dict):
        return ", ".join(f"{plain(str(name))} {_plainly(inner)}" for name, inner in value.items()) or "none"
    if isinstance(value, bool) or not isinstance(value, int | float):
        return plain(str(value))
    return f"{value:,}" if isinstance(value, int) else f"{value:,.4g}"
