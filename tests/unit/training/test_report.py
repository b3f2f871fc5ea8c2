"""The report: what it shows, what it leaves out, and that nothing in it comes from or goes elsewhere."""

from __future__ import annotations

import re
import unicodedata
from dataclasses import replace
from html.parser import HTMLParser
from typing import Any

import numpy as np
import pytest
from sklearn.metrics import auc, average_precision_score, roc_auc_score

from feature_store.bundles.bundle import OFFERS, Manifest
from tests.conftest import DrawnReport
from tests.made_evidence import made_evidence, made_manifest, made_rows
from training.evaluation.policies import TIMES_VALUE
from training.evidence import BinaryAttribute, Evidence, Finding, HoldoutRows, NegativeControl, Segment
from training.report import curves
from training.report.drawing import compact, short
from training.report.render import render_report
from training.report.words import FIGURES, headline, saved

Rows = dict[str, HoldoutRows]

SECTIONS = [
    "How well does it predict?",
    "Does acting on it pay?",
    "How reliable are the values?",
    "What if the assumed rates are wrong?",
    "What does the offer change?",
    "How optimistic is a random split?",
    "Which models were compared",
    "How many features are needed",
    "Which features matter",
    "What if the data is damaged?",
    "Customer segments",
    "Redundant attributes",
    "Findings of the data audit",
    "Model card",
    "Notes of the fit",
]


class Page(HTMLParser):
    """What a test asks of a page: headings, text, plots and attributes."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.headings: list[tuple[str, str]] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if re.fullmatch(r"h\d", tag):
            self.headings.append((tag, ""))

    def handle_data(self, data: str) -> None:
        self.text += data
        if self.headings and not self.headings[-1][1]:
            self.headings[-1] = (self.headings[-1][0], data)

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]

    @property
    def plots(self) -> list[str]:
        return [plot["aria-label"] or "" for plot in self.all("svg")]


@pytest.fixture(scope="module")
def rows(drawn_report: DrawnReport) -> Rows:
    return drawn_report.rows


@pytest.fixture(scope="module")
def written(drawn_report: DrawnReport) -> str:
    return drawn_report.path.read_text()


@pytest.fixture(scope="module")
def page(written: str) -> Page:
    return Page(written)


def rendered(rows: Rows, **tables: Any) -> Page:
    return Page(render_report(made_manifest(rows), Evidence(**tables), rows))


def test_all_sections_come_in_order_and_levels_are_never_skipped(page: Page) -> None:
    second = [text for level, text in page.headings if level == "h2"]
    assert second == ["Churn: will this customer leave?", "Propensity: will this customer buy?", *SECTIONS]
    levels = [int(level[1]) for level, _ in page.headings]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert max(np.diff(levels)) == 1


@pytest.mark.usefixtures("without_pictures")
def test_sections_without_evidence_are_listed_but_not_drawn(rows: Rows, page: Page) -> None:
    bare = rendered(rows, notes=["there is no treatment in the config"])
    shown = [text for level, text in bare.headings if level == "h2"][2:]
    assert shown == ["How well does it predict?", "Does acting on it pay?", *SECTIONS[-2:]]
    for title in SECTIONS[2:-2]:
        assert title in bare.text
    assert "there is no treatment in the config" in bare.text
    assert len(bare.plots) == 2 * (5 + 1)
    assert len(page.plots) > 30


def test_a_headline_gives_the_figures_of_the_manifest(rows: Rows, page: Page) -> None:
    metrics = made_manifest(rows).metrics
    for offer in OFFERS:
        for name in FIGURES:
            assert f"{metrics[offer][name]:.4f}" in page.text
        assert f"AUC {metrics[offer]['auc']:.3f}, recency alone" in page.text


def test_every_plot_has_a_text_alternative_with_figures(page: Page) -> None:
    assert all(plot["role"] == "img" for plot in page.all("svg"))
    for label in page.plots:
        assert len(re.findall(r"\d", label)) >= 3, label
    assert len(set(page.plots)) == len(page.plots)


def test_table_headers_have_scopes_and_ids_are_unique(page: Page) -> None:
    assert {head.get("scope") for head in page.all("th")} == {"col", "row"}
    ids = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
    assert len(ids) == len(set(ids))


def test_references_within_plots_resolve(written: str, page: Page) -> None:
    ids = {attributes["id"] for _, attributes in page.elements if "id" in attributes}
    assert set(re.findall(r"url\(#([^)]+)\)", written)) <= ids
    assert {use["xlink:href"] for use in page.all("use")} <= {f"#{name}" for name in ids}
    assert {link["href"] for link in page.all("a")} <= {f"#{name}" for name in ids}


def test_the_page_loads_nothing_and_runs_nothing(written: str, page: Page) -> None:
    namespaces = {"http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"}
    assert set(re.findall(r"https?://[^\"' ]+", written)) == namespaces
    assert not {"script", "link", "img", "iframe", "object", "image"} & {tag for tag, _ in page.elements}
    assert not [name for _, attributes in page.elements for name in attributes if name.startswith("on")]
    (policy,) = (meta["content"] for meta in page.all("meta") if meta.get("http-equiv") == "Content-Security-Policy")
    assert policy is not None
    assert policy.startswith("default-src 'none'; style-src 'unsafe-inline'")


@pytest.mark.full
def test_the_same_evidence_gives_the_same_bytes(rows: Rows, written: str) -> None:
    assert render_report(made_manifest(rows), made_evidence(), rows) == written


def test_the_same_rows_of_one_offer_give_the_same_bytes(rows: Rows) -> None:
    assert of_churn(rows["churn"]) == of_churn(rows["churn"])


def of_churn(rows: HoldoutRows) -> str:
    """The report of one offer, without what is not drawn of its rows."""
    return render_report(made_manifest({"churn": rows}), Evidence(), {"churn": rows})


def test_no_customer_id_is_in_the_report(rows: Rows, written: str) -> None:
    for test in rows.values():
        for customer in test.customer.tolist():
            assert str(customer) not in written
            assert f"{customer:x}" not in written


HOSTILE = [
    "<script>alert(1)</script>",
    '"><b onclick=x>',
    "$\\frac{1}{x}_$",
    "靴と鞄 👟",
    "حذاء",
    "a\0b\x1b[31m",
    "x" * 300,
    "",
]


@pytest.mark.filterwarnings("error")
def test_hostile_names_are_shown_as_text(rows: Rows) -> None:
    segments = [
        Segment(
            name=name,
            scheme="k-means",
            share=0.1,
            churn_rate=None,
            propensity_rate=0.5,
            mean_spend=None,
            profile={name: 1.0},
        )
        for name in HOSTILE
    ]
    tags = [
        BinaryAttribute(tag=name, said_by=[name], support=0.1, confidence=0.5, cluster=0, kept=True) for name in HOSTILE
    ]
    audit = [Finding(severity="note", check=name, where=name, message=name, fix=name) for name in HOSTILE]
    page = rendered(
        rows, segments=segments, tags=tags, audit=audit, tags_cost=dict.fromkeys(HOSTILE, 0.1), notes=HOSTILE
    )
    assert not {"script", "b"} & {tag for tag, _ in page.elements}
    for name in HOSTILE[:5]:
        assert page.text.count(name) >= 5
    assert {letter for letter in page.text if unicodedata.category(letter) == "Cc"} == {"\n"}


@pytest.mark.usefixtures("without_pictures")
def test_an_offer_without_rows_is_left_out(rows: Rows) -> None:
    page = Page(render_report(made_manifest(rows), Evidence(), {"churn": rows["churn"]}))
    assert "Churn: will this customer leave?" in page.text
    assert "will this customer buy?" not in page.text


@pytest.mark.usefixtures("without_pictures")
def test_a_snapshot_is_shown_without_recency() -> None:
    rows = {offer: made_rows(offer, snapshot=True) for offer in OFFERS}
    rows["propensity"] = replace(rows["propensity"], baseline=np.full(len(rows["propensity"].label), np.nan))
    page = Page(render_report(made_manifest(rows), Evidence(), rows))
    propensity = [label for label in page.plots if "propensity" in label]
    assert len(propensity) == 6
    assert not [label for label in propensity if "recency" in label]


def with_policy(rows: HoldoutRows, **figures: float) -> Manifest:
    """A manifest in which the alerts of churn have other figures."""
    manifest = made_manifest({"churn": rows})
    manifest.metrics["churn"]["policy"] |= figures
    return manifest


def verdict(rows: HoldoutRows, policy: dict[str, float] | None = None, **tables: Any) -> tuple[bool | None, str]:
    result = headline("churn", with_policy(rows, **(policy or {})), Evidence(**tables), rows)
    return result.good, result.verdict


def test_the_verdict_says_whether_to_act_on_it(rows: Rows) -> None:
    test = rows["churn"]
    assert verdict(test)[0] is True
    assert "no better than the baseline" in verdict(replace(test, probability=test.baseline))[1]
    assert verdict(replace(test, probability=test.baseline))[0] is False
    assert "probabilities are off" in verdict(replace(test, probability=test.probability**0.75))[1]
    assert "does not pay" in verdict(test, {"profit_low": -9.0, "profit_high": -1.0})[1]
    assert "not shown that acting pays" in verdict(test, {"profit_low": -1.0, "profit_high": 9.0})[1]
    failed = NegativeControl(offer="churn", shuffles=20, mean_lead=5.0, shown_ahead=20, passed=False)
    assert "negative control failed" in verdict(test, controls=[failed])[1]
    fatal = Finding(severity="fatal", check="leak", where="x", message="x", fix="x")
    assert verdict(test, audit=[fatal]) == (False, "Do not act on it: the audit found a fatal fault")


def test_an_offer_that_alerts_nobody_says_so(rows: Rows) -> None:
    test = replace(rows["churn"], threshold=np.ones(len(rows["churn"].label)))
    reported = headline("churn", with_policy(test, contacts=0.0), made_evidence(), test).sentence
    assert reported.endswith("points on average; nobody is alerted.")


def test_long_names_keep_the_end_in_which_they_differ() -> None:
    assert short("private_label_baskets_112d") == "private_label…skets_112d"
    assert short("visits_28d") == "visits_28d"


def test_the_sentence_names_the_strongest_other_policy(rows: Rows) -> None:
    test = rows["churn"]
    reported = headline("churn", made_manifest({"churn": test}), made_evidence(), test).sentence
    assert "not shown to differ from probability times value, the strongest other policy" in reported
    policies = [policy for policy in made_evidence().policies if policy.policy != TIMES_VALUE]
    reported = headline("churn", made_manifest({"churn": test}), Evidence(policies=policies), test).sentence
    assert re.search(r"\(\d+ more than single threshold, as many contacts, the strongest other policy", reported)


def test_savings_compare_the_chosen_subset_with_all_features() -> None:
    assert saved(made_evidence().ladder) == (
        "6 of 11 features were chosen: 72 bytes per customer, 40 less than with all; 38.6 µs to compute them, 15.5 µs "
        "less."
    )
    assert saved([]) == ""


def test_a_curve_of_many_rows_has_few_points_and_the_same_area() -> None:
    test = made_rows(customers=30_000)
    false, true, area = curves.roc(test.label, test.probability)
    assert len(false) <= curves.POINTS
    assert area == pytest.approx(roc_auc_score(test.label, test.probability))
    assert auc(false, true) == pytest.approx(roc_auc_score(test.label, test.probability), abs=1e-4)
    precision, recall, average = curves.precision_recall(test.label, test.probability)
    assert len(recall) <= curves.POINTS
    assert average == pytest.approx(average_precision_score(test.label, test.probability))
    assert auc(recall, precision) == pytest.approx(average_precision_score(test.label, test.probability), abs=2e-3)


@pytest.mark.full
def test_many_rows_do_not_make_a_large_report() -> None:
    rows = {offer: made_rows(offer, customers=30_000) for offer in OFFERS}
    assert len(render_report(made_manifest(rows), made_evidence(), rows).encode()) < 1_000_000


def test_a_report_is_small_and_hardly_grows_with_its_rows(rows: Rows, written: str) -> None:
    assert len(written.encode()) < 900_000
    few, many = (len(of_churn(some).encode()) for some in (rows["churn"], made_rows("churn", customers=3000)))
    assert many < 1.1 * few + 20_000


def test_lift_gains_and_reliability_on_an_example_to_check_by_hand() -> None:
    label = np.arange(100) >= 80
    score = np.linspace(0.005, 0.995, 100)
    assert curves.lift(label, score).tolist() == pytest.approx([5, 5, 0, 0, 0, 0, 0, 0, 0, 0])
    contacted, reached = curves.gains(label, score)
    assert reached[[0, 10, 20, 100]].tolist() == pytest.approx([0, 0.5, 1, 1])
    assert contacted[10] == pytest.approx(0.1)
    result = curves.reliability(label, score, np.arange(100, dtype=np.uint64))
    assert result.predicted.tolist() == pytest.approx(np.arange(0.05, 1, 0.1).tolist())
    assert result.observed.tolist() == [0] * 8 + [1] * 2
    assert result.histogram.tolist() == pytest.approx([0.05] * 20)


def test_whiskers_of_the_reliability_are_wider_if_customers_have_several_equal_rows() -> None:
    random = np.random.default_rng(2)
    score = random.random(500)
    label = random.random(500) < score
    customer = np.arange(500, dtype=np.uint64)
    once = curves.reliability(label, score, customer)
    # For independent rows it is the error of a binomial share.
    np.testing.assert_allclose(once.error, 1.96 * np.sqrt(once.observed * (1 - once.observed) / 50))
    again = curves.reliability(np.repeat(label, 4), np.repeat(score, 4), np.repeat(customer, 4))
    np.testing.assert_allclose(again.error, once.error)  # four times the rows, but not more customers


TOLD = {
    0: "0",
    0.314159: "0.314",
    -12.34: "\N{MINUS SIGN}12.3",
    120.4: "120",
    -1234.4: "\N{MINUS SIGN}1,234",
    45_678: "45.7k",
    123_456: "123k",
    12_300_000: "12.3M",
}


@pytest.mark.parametrize(("value", "told"), TOLD.items())
def test_numbers_are_written_in_few_characters(value: float, told: str) -> None:
    assert compact(value) == told
