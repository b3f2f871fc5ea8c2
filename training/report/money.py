"""The sections of the report about money: policies, values, assumed rates and randomised offers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from training.evaluation.policies import DYNAMIC, SINGLE, verdict
from training.evidence import Evidence, HoldoutRows, HorizonEffect, NegativeControl, Policy
from training.report import plots_money
from training.report.drawing import compact, plain
from training.report.layout import Part, Section, Table, by, interval_text, joined, rate_text

COST_METRICS = (
    "Expected savings: the share of the cost of wrong decisions that a threshold avoids, compared with the better of "
    "contacting everybody and nobody. EMPC: expected maximum profit per customer when ranking by probability, and the "
    "share of customers contacted for it."
)


NEGATIVE_CONTROL = (
    "The comparison is repeated with a value model that knows nothing. If that were shown ahead of a single threshold, "
    "the comparison would reward any ranking by value, and its results would mean nothing."
)
VALUE_HORIZON = (
    "A customer who is kept goes on buying. For each horizon the value of keeping is learnt again, thresholds and the "
    "price of the budget follow, and profit is counted over the same horizon."
)


def money(evidence: Evidence, rows: Mapping[str, HoldoutRows]) -> Section:
    """Whether acting pays: policies at equal contacts, the negative control and value horizons."""
    section = Section(
        "money",
        "Does acting on it pay?",
        "Realised profit is computed from observed outcomes, assumed rates and money that came: for propensity the "
        "amount of the customer's purchase, for churn what comparable customers brought who stayed. All policies "
        "contact the same number of customers.",
    )
    for offer, test in rows.items():
        policies = [policy for policy in evidence.policies if policy.offer == offer]
        pictures = [plots_money.profit(offer, policies), plots_money.ahead(offer, policies)] if policies else []
        tables = [_policy_table(offer, policies)] if policies else []
        text = _acting(policies) if policies else "No other policies were compared."
        drawn = [picture for picture in [*pictures, plots_money.thresholds(offer, test)] if picture]
        section.parts.append(Part(offer, text, drawn, tables))
    if evidence.controls:
        section.parts.append(Part("Negative control", NEGATIVE_CONTROL, tables=[_controls(evidence.controls)]))
    if evidence.horizons:
        section.parts.append(Part("Value horizon", VALUE_HORIZON, tables=[_horizons(evidence.horizons)]))
    if evidence.costs:
        section.parts.append(Part("Cost-sensitive metrics", COST_METRICS, tables=[_cost_metrics(evidence.costs)]))
    return section


def _acting(policies: Sequence[Policy]) -> str:
    """What the intervals say of acting on the alerts, and of the dynamic threshold against a single one."""
    own = [policy for policy in policies if policy.is_own_budget]
    alerts = next((policy for policy in own if policy.policy == DYNAMIC), None)
    single = next((policy for policy in own if policy.policy == SINGLE), None)
    if alerts is None or single is None or single.ahead is None:
        return ""
    low, high = single.ahead_low or 0.0, single.ahead_high or 0.0
    relation = "earns more than" if low > 0 else "earns less than" if high < 0 else "is not shown to differ from"
    return (
        f"{verdict(alerts.low, alerts.high).capitalize()}: the alerts earn {compact(alerts.realised)}, 95% "
        f"{interval_text(alerts.low, alerts.high)}. The dynamic threshold {relation} a single threshold with as many "
        f"contacts: {compact(single.ahead)}, 95% {interval_text(low, high)}."
    )


def _controls(controls: Sequence[NegativeControl]) -> Table:
    return Table(
        "With values shuffled among the customers, at the config's budget",
        ("offer", "shuffles", "shown ahead", "mean lead of the dynamic threshold", "passed"),
        [
            (
                control.offer,
                str(control.shuffles),
                str(control.shown_ahead),
                compact(control.mean_lead),
                "yes" if control.passed else "NO",
            )
            for control in controls
        ],
    )


def _horizons(horizons: Sequence[HorizonEffect]) -> Table:
    def cells(line: HorizonEffect) -> tuple[str, ...]:
        if line.profit is None:
            return (f"the history is too short ({line.learnt_from:,} rows)", *[""] * 6)
        return (
            f"{line.mean_value:,.2f}",
            rate_text(line.never),
            rate_text(line.paying),
            rate_text(line.alerts),
            rate_text(line.same_alerts),
            compact(line.profit),
            interval_text(line.low or 0.0, line.high or 0.0),
        )

    return Table(
        "Churn by value horizon",
        (
            "days",
            "mean value",
            "never acted on",
            "acting pays without a budget",
            "alerts within the budget",
            "of them alerted as configured",
            "realised profit",
            "95%",
        ),
        [(f"{line.horizon_days:g}", *cells(line)) for line in horizons],
    )


def _cost_metrics(costs: Mapping[str, float]) -> Table:
    rows = [(plain(name.replace("_", " ")), f"{figure:,.4g}") for name, figure in costs.items()]
    return Table("Without a budget, on the test rows", ("metric", "value"), rows)


def _policy_table(offer: str, policies: Sequence[Policy]) -> Table:
    """The policies at the config's budget, the same figures as in manifest and console."""
    own = [policy for policy in policies if policy.is_own_budget]
    budget = f"{own[0].budget_share:.0%}" if own else ""
    return Table(
        f"{offer.capitalize()}: policies within the config's budget of {budget} of the customers",
        (
            "policy",
            "contacts",
            "realised profit",
            "95%",
            "acting",
            "dynamic threshold earns more by",
            "95%",
            "profit at the model's own values",
            "expected profit",
        ),
        [
            (
                plain(policy.policy),
                f"{policy.contacts:,.0f}",
                compact(policy.realised),
                interval_text(policy.low, policy.high),
                verdict(policy.low, policy.high),
                "" if policy.ahead is None else compact(policy.ahead),
                "" if policy.ahead is None else interval_text(policy.ahead_low or 0.0, policy.ahead_high or 0.0),
                compact(policy.at_model_values),
                compact(policy.expected),
            )
            for policy in own
        ],
    )


def values(evidence: Evidence) -> Section:
    """Reliability of the values that thresholds depend on."""
    section = Section(
        "values",
        "How reliable are the values?",
        "Thresholds depend on the value of winning a customer. It can be checked on customers who stayed (churn) or "
        "bought (propensity): predicted against realised value, on rows that the models have not seen.",
    )
    for value in evidence.values:
        rows = [
            (of, f"{ratio.rows:,}", f"{ratio.ratio:.3f}", f"{ratio.low:.3f} to {ratio.high:.3f}")
            for of, ratio in (("all", value.total), ("alerted", value.alerted))
            if ratio is not None
        ]
        table = Table(
            f"Total predicted value over total realised value, {value.offer}",
            ("customers", "rows", "ratio", "95%"),
            rows,
        )
        section.parts.append(Part(value.offer, pictures=[plots_money.values(value)], tables=[table] if rows else []))
    return section


def rates(evidence: Evidence) -> Section:
    """Dynamic against single threshold for other success and redemption rates."""
    section = Section(
        "rates",
        "What if the assumed rates are wrong?",
        "Success and redemption rates are assumptions. Each square assumes a different pair, tunes the best single "
        "threshold on calibration data, and compares both on the test cut-offs.",
    )
    section.parts.extend(Part(pictures=[plots_money.grid(offer, cells)]) for offer, cells in by(evidence.grid, "offer"))
    return joined(section)


def treatment(evidence: Evidence) -> Section:
    """Values of policies, measured on a randomised offer."""
    section = Section("treatment", "What does the offer change?", "Measured on data in which the offer was randomised.")
    if evidence.treatment:
        table = Table(
            "Value per customer",
            ("policy", "estimator", "value", "95%"),
            [
                (plain(v.policy), plain(v.estimator), f"{v.value:.4g}", interval_text(v.low, v.high))
                for v in evidence.treatment
            ],
            names=2,
        )
        section.parts.append(Part(pictures=[plots_money.treatment(evidence.treatment)], tables=[table]))
    return section
