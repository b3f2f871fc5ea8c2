"""Tags that say the same are found, nothing is found in independent ones, and leaving them out is a matter of loss."""

from __future__ import annotations

import time

import numpy as np
import numpy.typing as npt
import pytest
from mlxtend.frequent_patterns import apriori, association_rules  # type: ignore[import-untyped]
from pandas import DataFrame  # type: ignore[import-untyped]

from feature_store.state.layout import Floats
from training.arrays import Bools
from training.selection.redundant_tags import binary_columns, find_redundant, find_rules, has_enough_binary


def independent(rows: int, tags: int, seed: int = 0) -> Bools:
    rng = np.random.default_rng(seed)
    return np.asarray(rng.random((rows, tags)) < rng.uniform(0.02, 0.98, tags))


def planted(rows: int = 5_000) -> tuple[Bools, list[str]]:
    """Independent tags, and a duplicate, a mirror, an implied, a rare, a constant and a related tag of the first."""
    rng = np.random.default_rng(1)
    tags = np.asarray(rng.random((rows, 5)) < 0.4)
    first = tags[:, 0]
    more = {
        "duplicate": first ^ (rng.random(rows) < 0.01),
        "mirror": ~first,
        "implied": first & (rng.random(rows) < 0.5),
        "rare": rng.random(rows) < 0.002,
        "constant": np.ones(rows, dtype=bool),
        "related": first ^ (rng.random(rows) < 0.1),
    }
    return np.column_stack([tags, *more.values()]), ["first", "b", "c", "d", "e", *more]


CUSTOMERS = np.arange(50)


class Losses:
    """Losses of 1 and more for every tag that is needed and not there.

    ``noise``: standard deviation of the losses of a set among the customers, apart from what they have in common.
    """

    def __init__(self, needed: list[list[int]], noise: float = 0.0) -> None:
        self.needed, self.noise = needed, noise
        self.calls: list[list[int]] = []

    def __call__(self, indexes: list[int]) -> Floats:
        assert indexes
        self.calls.append(indexes)
        missing = sum(not set(any_of) & set(indexes) for any_of in self.needed)
        varied = np.random.default_rng(missing).normal(size=len(CUSTOMERS))
        return np.asarray(1.0 + missing + self.noise * missing * (varied - varied.mean()) / varied.std())


def test_duplicate_opposite_and_implied_attributes_are_redundant() -> None:
    tags, names = planted()
    result = {tag.tag: tag for tag in find_redundant(tags, names, Losses([]), CUSTOMERS)[0]}
    assert list(result) == names
    assert result["first"].said_by == ["duplicate", "not mirror", "implied"]
    assert result["duplicate"].said_by == ["first", "not mirror", "implied"]
    assert result["mirror"].said_by == ["not first", "not duplicate"]
    assert result["implied"].said_by == []
    assert result["first"].confidence == 1
    assert 0.98 < result["duplicate"].confidence < 1
    assert result["first"].support == pytest.approx(0.4, abs=0.02)
    assert {result[name].cluster for name in ("first", "duplicate", "mirror", "related")} == {result["first"].cluster}
    assert len({result[name].cluster for name in ("first", "b", "c", "d", "e")}) == 5


def test_the_smallest_set_that_loses_nothing_is_kept() -> None:
    tags, names = planted()
    copies = [0, 5, 6]
    losses = Losses([copies, [1], [2], [3], [4], [7], [10]])  # the implied and the related tag are needed
    result, costs = find_redundant(tags, names, losses, CUSTOMERS)
    kept = [tag.tag for tag in result if tag.kept]
    assert len(kept) == 7
    assert {"b", "c", "d", "e", "implied", "related"} < set(kept)
    assert costs["all tags"] == costs["without rare tags"] == costs["without tags that say the same"] == 1
    assert costs["without implied tags"] == 2
    assert costs["one tag per cluster"] == 3
    assert len(losses.calls) == len(costs) == 5


@pytest.mark.parametrize(("noise", "kept"), [(0.0, 7), (6.0, 7), (8.0, 5)])
def test_a_loss_within_one_standard_error_is_no_loss(noise: float, kept: int) -> None:
    # The smallest set has a loss that is 2 higher, with a standard error of 2 noise / sqrt(50).
    tags, names = planted()
    losses = Losses([[0, 5, 6], [7], [10]], noise)
    result, costs = find_redundant(tags, names, losses, CUSTOMERS)
    assert sum(tag.kept for tag in result) == kept
    assert costs["one tag per cluster"] == pytest.approx(3)


def test_all_attributes_are_kept_if_each_is_needed() -> None:
    tags, names = planted()
    result, costs = find_redundant(tags, names, Losses([[at] for at in range(len(names))]), CUSTOMERS)
    assert all(tag.kept for tag in result)
    assert min(costs.values()) == costs["all tags"]


@pytest.mark.parametrize("rows", [1_000, 20_000])
def test_independent_attributes_are_not_redundant_and_cost_one_call(rows: int) -> None:
    losses = Losses([])
    result, costs = find_redundant(independent(rows, 60), [f"t{i}" for i in range(60)], losses, CUSTOMERS)
    assert all(tag.kept and not tag.said_by for tag in result)
    assert len({tag.cluster for tag in result}) == 60
    assert list(costs) == ["all tags"]
    assert len(losses.calls) == 1


def test_confidence_and_support_are_those_of_association_rules() -> None:
    tags, names = planted(2_000)
    tags, names = np.delete(tags, names.index("constant"), axis=1), [name for name in names if name != "constant"]
    rules = find_rules(tags, seed=7)
    sets = apriori(DataFrame(tags, columns=names), min_support=0.005, max_len=2, use_colnames=True, low_memory=True)
    table = association_rules(sets, metric="confidence", min_threshold=0.0)
    assert len(table) > 50
    for rule in table.itertuples():
        left, right = names.index(min(rule.antecedents)), names.index(min(rule.consequents))
        assert rules.confidence[left, right] == pytest.approx(rule.confidence)
        assert rules.support[left] == pytest.approx(rule[3])


def test_an_attribute_that_nearly_all_have_is_not_implied_by_others() -> None:
    tags = independent(20_000, 6)
    tags[:, 0] = np.random.default_rng(5).random(20_000) < 0.97
    result, _ = find_redundant(tags, list("abcdef"), Losses([]), CUSTOMERS)
    assert all(not tag.said_by for tag in result)


def test_constant_attributes_leave_one() -> None:
    result, costs = find_redundant(np.ones((50, 6), dtype=bool), list("abcdef"), Losses([]), CUSTOMERS)
    assert sum(tag.kept for tag in result) == 1
    assert list(costs) == ["all tags", "without rare tags"]


def test_a_single_attribute_is_kept() -> None:
    result, _ = find_redundant(independent(100, 1), ["a"], Losses([]), CUSTOMERS)
    assert [tag.kept for tag in result] == [True]


def test_300_attributes_of_100_000_rows_are_not_compared_pair_by_pair() -> None:
    tags = independent(100_000, 300)
    tags[:, 1] = tags[:, 0]
    start = time.process_time()
    result, _ = find_redundant(tags, [f"t{i}" for i in range(300)], Losses([]), CUSTOMERS)
    assert time.process_time() - start < 100  # pair by pair it would take many minutes
    assert result[0].said_by == ["t1"]


def test_five_binary_columns_make_a_table_of_binary_attributes() -> None:
    tag = np.array([0.0, 1.0, 1.0])
    columns: dict[str, npt.NDArray[np.generic]] = {
        "a": tag,
        "b": tag.astype(bool),
        "c": tag.astype(int),
        "d": np.array([0, np.nan, 1]),
        "age": np.array([31.0, 40.0, 1.0]),
        "none": np.full(3, np.nan),
        "text": np.array(["0", "1", "x"], dtype=object),
    }
    assert binary_columns(columns) == ["a", "b", "c", "d"]
    assert not has_enough_binary(columns)
    assert has_enough_binary(columns | {"e": np.zeros(3)})
