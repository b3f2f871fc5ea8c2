"""The sections of the report: plots and tables, and the titles of sections without evidence."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from feature_store.bundles.bundle import Manifest
from training.evidence import Evidence, HoldoutRows, SlotStability
from training.parallel import IN_PROCESS, WorkerPool
from training.report import money, plots_groups, plots_models, plots_rows
from training.report.drawing import plain
from training.report.layout import Part, Section, Table, by, joined, rate_text
from training.report.words import saved

Rows = Mapping[str, HoldoutRows]


def sections(evidence: Evidence, rows: Rows, pool: WorkerPool = IN_PROCESS) -> tuple[list[Section], list[str]]:
    """The sections in order, and the titles of those without evidence; workers draw them side by side."""
    tasks = [pool.submit(_quality, rows), pool.submit(money.money, evidence, rows)]
    tasks += [
        pool.submit(section, evidence)
        for section in (
            money.values,
            money.rates,
            money.treatment,
            _splits,
            _trials,
            _features,
            _importance,
            _robustness,
            _segments,
            _tags,
            _audit,
        )
    ]
    candidates = [task.result() for task in tasks]
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
        pictures = [plots_models.trials(target, trials) for target, trials in by(evidence.trials, "target")]
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
        Part(pictures=[plots_models.importance(target, ranked)]) for target, ranked in by(evidence.importance, "target")
    )
    return joined(section)


def _robustness(evidence: Evidence) -> Section:
    section = Section(
        "robustness", "What if the data is damaged?", "With missing values, lost events and duplicated events."
    )
    section.parts.extend(
        Part(pictures=[plots_models.robustness(offer, damage)]) for offer, damage in by(evidence.robustness, "offer")
    )
    return joined(section)


def _segments(evidence: Evidence) -> Section:
    section = Section("segments", "Customer segments", "Segments of the test customers.")
    for scheme, segments in by(evidence.segments, "scheme"):
        pictures = [plots_groups.sizes(scheme, segments), plots_groups.profile(scheme, segments)]
        table = Table(
            f"Segments by {scheme}",
            ("number", "segment", "share", "churn rate", "propensity rate", "mean spend"),
            [
                (
                    str(n),
                    plain(s.name),
                    f"{s.share:.1%}",
                    rate_text(s.churn_rate),
                    rate_text(s.propensity_rate),
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
                (f.severity, plain(f.check), plain(f.where), plain(f.message), plain(f.fix), rate_text(f.share))
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


def _amount(amount: float | None) -> str:
    return "" if amount is None else f"{amount:,.2f}"


def _plainly(value: object) -> str:
    """A value of the manifest as text: short numbers, and dictionaries as lists."""
    if isinstance(value, dict):
        return ", ".join(f"{plain(str(name))} {_plainly(inner)}" for name, inner in value.items()) or "none"
    if isinstance(value, bool) or not isinstance(value, int | float):
        return plain(str(value))
    return f"{value:,}" if isinstance(value, int) else f"{value:,.4g}"
