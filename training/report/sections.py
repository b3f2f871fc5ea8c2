"""The sections of the report: plots and tables of what there is, and the names of those for which there is nothing."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any

from feature_store.bundles.bundle import Manifest
from training.evidence import Evidence, Policy, TestRows
from training.report import plots_groups, plots_models, plots_money, plots_rows
from training.report.drawing import Picture, compact, plain
from training.report.words import saved

Rows = Mapping[str, TestRows]

SAVINGS = (
    "Expected savings: the share of what it costs to contact the wrong ones that a threshold avoids, next to the "
    "better of contacting everybody and nobody. EMPC: expected maximum profit of ranking by probability, per customer, "
    "and the share contacted then."
)


@dataclass(frozen=True)
class Table:
    """Cells as text; all but the first ``names`` columns are figures."""

    caption: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    names: int = 1


@dataclass(frozen=True)
class Part:
    """Something under a heading of its own (none where it is empty)."""

    heading: str = ""
    text: str = ""
    pictures: Sequence[Picture] = ()
    tables: Sequence[Table] = ()


@dataclass(frozen=True)
class Section:
    """A section that has something to show."""

    slug: str
    title: str
    lead: str
    parts: list[Part] = field(default_factory=list)


def sections(evidence: Evidence, rows: Rows) -> tuple[list[Section], list[str]]:
    """Sections in the order in which they are read, and the titles of those for which there is no evidence."""
    every = [
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
    return [one for one in every if one.parts], [one.title for one in every if not one.parts]


def _quality(rows: Rows) -> Section:
    found = Section(
        "quality",
        "Does it tell who?",
        "On rows the models have not seen: later ones, or of a snapshot some drawn by lot.",
    )
    found.parts.extend(Part(offer, pictures=plots_rows.plots_of_rows(offer, test)) for offer, test in rows.items())
    return found


def _money(evidence: Evidence, rows: Rows) -> Section:
    found = Section(
        "money",
        "Does acting on it pay?",
        "Profit counts the outcome that came, the model's value of the customer and the assumed rates; every policy "
        "contacts equally many customers.",
    )
    for offer, test in rows.items():
        policies = [policy for policy in evidence.policies if policy.offer == offer]
        pictures = [plots_money.profit(offer, policies), plots_money.ahead(offer, policies)] if policies else []
        tables = (
            [_policy_table(offer, policies, float((test.probability >= test.threshold).mean()))] if policies else []
        )
        text = "" if policies else "No other policies were compared."
        drawn = [picture for picture in [*pictures, plots_money.thresholds(offer, test)] if picture]
        found.parts.append(Part(offer, text, drawn, tables))
    if evidence.costs:
        found.parts.append(Part("What acting saves", SAVINGS, tables=[_savings(evidence.costs)]))
    return found


def _savings(costs: Mapping[str, float]) -> Table:
    rows = [(plain(name.replace("_", " ")), f"{figure:,.4g}") for name, figure in costs.items()]
    return Table("With no budget, on the test", ("what", "figure"), rows)


def _policy_table(offer: str, policies: Sequence[Policy], share: float) -> Table:
    nearest = min((policy.budget_share for policy in policies), key=lambda budget: abs(budget - share))
    return Table(
        f"{offer.capitalize()}: policies at {nearest:.0%} of the customers, nearest to the alerts' share ({share:.1%})",
        ("policy", "contacts", "expected", "realised", "95%", "dynamic threshold earns more", "95%"),
        [
            (
                plain(one.policy),
                f"{one.contacts:,.0f}",
                compact(one.expected),
                compact(one.realised),
                _interval(one.low, one.high),
                "" if one.ahead is None else compact(one.ahead),
                "" if one.ahead is None else _interval(one.ahead_low or 0.0, one.ahead_high or 0.0),
            )
            for one in policies
            if one.budget_share == nearest
        ],
    )


def _rates(evidence: Evidence) -> Section:
    found = Section(
        "rates",
        "And if the assumed rates are wrong?",
        "Success and redemption rates are assumptions. Each square assumes another pair, finds the best single "
        "threshold on calibration data, and compares on the test cut-offs.",
    )
    found.parts.extend(Part(pictures=[plots_money.grid(offer, cells)]) for offer, cells in _by(evidence.grid, "offer"))
    return _joined(found)


def _treatment(evidence: Evidence) -> Section:
    found = Section("treatment", "What the offer really changes", "From data in which the offer was made at random.")
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
        found.parts.append(Part(pictures=[plots_money.treatment(evidence.treatment)], tables=[table]))
    return found


def _splits(evidence: Evidence) -> Section:
    found = Section("splits", "Would a random split have told the truth?", "The same models judged both ways.")
    if evidence.optimism:
        found.parts.append(Part(pictures=[plots_models.optimism(evidence.optimism)]))
    return found


def _trials(evidence: Evidence) -> Section:
    found = Section("trials", "Which models were tried", "In folds without the test: in time, or of a snapshot by lot.")
    if evidence.trials:
        pictures = [plots_models.trials(target, trials) for target, trials in _by(evidence.trials, "target")]
        table = Table(
            "Candidate models",
            ("target", "model", "loss", "behind", "error", "chosen"),
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
        found.parts.append(Part(pictures=pictures, tables=[table]))
    return found


def _features(evidence: Evidence) -> Section:
    found = Section("features", "How many features it takes", _candidates(evidence))
    if evidence.ladder:
        targets = dict.fromkeys(target for rung in evidence.ladder for target in rung.behind)
        pictures = [plots_models.ladder(target, evidence.ladder) for target in targets]
        chosen = [", ".join(map(plain, rung.slots)) for rung in evidence.ladder if rung.chosen]
        text = saved(evidence.ladder) + (f" They are {chosen[0]}." if chosen else "")
        found.parts.append(Part("", text, pictures))
    return found


def _candidates(evidence: Evidence) -> str:
    if not evidence.candidates:
        return "Loss against the number of features."
    return f"Of {evidence.candidates:,} candidates {evidence.earned_nothing:.0%} earned nothing."


def _importance(evidence: Evidence) -> Section:
    found = Section(
        "importance",
        "What it looks at",
        "What is lost on the test rows when a feature's values are shuffled among the rows.",
    )
    found.parts.extend(
        Part(pictures=[plots_models.importance(target, ranked)])
        for target, ranked in _by(evidence.importance, "target")
    )
    return _joined(found)


def _robustness(evidence: Evidence) -> Section:
    found = Section(
        "robustness", "What if the data is damaged?", "Values that are missing, events that are lost or come twice."
    )
    found.parts.extend(
        Part(pictures=[plots_models.robustness(offer, damage)]) for offer, damage in _by(evidence.robustness, "offer")
    )
    return _joined(found)


def _segments(evidence: Evidence) -> Section:
    found = Section("segments", "Who the customers are", "Groups of the test customers.")
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
        found.parts.append(Part(scheme, pictures=[one for one in pictures if one], tables=[table]))
    return found


def _tags(evidence: Evidence) -> Section:
    found = Section(
        "tags", "Tags that say the same", "Tags that follow from others can be left out of what is collected."
    )
    if evidence.tags:
        cost = ", ".join(f"{plain(name)} {lost:.4g}" for name, lost in evidence.tags_cost.items())
        table = Table(
            "Tags",
            ("tag", "said by", "support", "confidence", "cluster", "kept"),
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
        text = f"{left_out} of {len(evidence.tags)} may be left out." + (f" What that costs: {cost}." if cost else "")
        found.parts.append(Part("", text, [plots_groups.tags(evidence.tags)], [table]))
    return found


def _audit(evidence: Evidence) -> Section:
    found = Section(
        "audit",
        "What the audit of the data found",
        "Fatal findings stop a fit; warnings may; notes are for the record.",
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
        found.parts.append(Part(tables=[table]))
    return found


def card(manifest: Manifest) -> list[Table]:
    """The figures of the model card."""
    source, cutoffs = manifest.source, manifest.cutoffs
    spend = manifest.metrics.get("spend", {})
    return [
        Table("Data", ("what", "value"), [(name.replace("_", " "), _plainly(value)) for name, value in source.items()]),
        Table(
            "Cut-offs",
            ("block", "number", "first", "last"),
            [
                (block, str(len(found)), *((found[0][:10], found[-1][:10]) if found else ("", "")))
                for block, found in cutoffs.items()
            ],
        ),
        Table("Labels", ("what", "meaning"), list(manifest.labels.items()), names=2),
        Table("Economics", ("what", "figure"), [(name, f"{figure:g}") for name, figure in manifest.economics.items()]),
        Table(
            "Expected spend",
            ("what", "figure"),
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
            ("what", "value"),
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
    """The lines of a table by one of their fields, in the order of their first appearance."""
    order = list(dict.fromkeys(getattr(line, key) for line in table))
    ranked = sorted(table, key=lambda line: order.index(getattr(line, key)))
    for name, lines in groupby(ranked, key=lambda line: getattr(line, key)):
        yield name, list(lines)


def _joined(section: Section) -> Section:
    """Pictures of all parts side by side."""
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
    """A value of the manifest as text: figures short, whatever is in braces as a list."""
    if isinstance(value, dict):
        return ", ".join(f"{plain(str(name))} {_plainly(inner)}" for name, inner in value.items()) or "none"
    if isinstance(value, bool) or not isinstance(value, int | float):
        return plain(str(value))
    return f"{value:,}" if isinstance(value, int) else f"{value:,.4g}"
