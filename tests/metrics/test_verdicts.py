"""Verdicts, agreement, flips and ranks, against SciPy, scikit-learn and counting by hand."""

from __future__ import annotations

import time
from itertools import product

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from sklearn.metrics import cohen_kappa_score

from robustcli.metrics.intervals import (
    Bootstrap,
    Interval,
    PairedCounts,
    mean_interval,
    paired_interval,
    wilson_interval,
)
from robustcli.metrics.paired import exact_sign_flip_p, mcnemar_p, sign_flip_p
from robustcli.metrics.verdicts import (
    ALPHA,
    Agreement,
    Claim,
    Flips,
    Verdict,
    agreements,
    claims,
    flips,
    holm,
    rank_probabilities,
    transform_verdicts,
    verdicts,
)

BOOTSTRAP = Bootstrap(0, draws=2_000)
CLEAN = ("identity", 0)
DIFFERENCES = Interval(-1.0, 1.0)


def rows(predictions, targets=None) -> pd.DataFrame:
    """Rows of a classifier; the true class is 1 unless `targets` says otherwise."""
    ids = [f"{n:05}" for n in range(len(predictions))]
    true = np.ones(len(predictions), int) if targets is None else np.asarray(targets)
    return pd.DataFrame({"image_id": ids, "target": true, "prediction": np.asarray(predictions)})


def mask_rows(tp, groups=None) -> pd.DataFrame:
    """Rows of a segmenter: of 100 true pixels `tp` are found, none is called in vain."""
    ids = [f"{n:03}" for n in range(len(tp))]
    counts = {"tp": np.asarray(tp), "fp": 0, "fn": 100 - np.asarray(tp)}
    return pd.DataFrame({"image_id": ids, "group": ids if groups is None else groups, **counts})


def verdict(p_adjusted: float | None, difference: float, n: int = 10, pair="ab") -> Verdict:
    ends = (None, None, p_adjusted, p_adjusted)
    return Verdict(pair[0], pair[1], "fog", 0, n, n, difference, *ends)


def test_holms_correction_by_hand():
    # Holm (1979): the smallest of four is multiplied by 4, the next by 3, never falling.
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.5, 0.9]) == [1.0, 1.0]
    assert holm([]) == []


@given(st.lists(st.floats(0, 1), min_size=1, max_size=12))
def test_holm_rejects_what_the_step_down_procedure_rejects(p_values):
    adjusted = holm(p_values)
    rejected = set()
    for step, place in enumerate(sorted(range(len(p_values)), key=lambda i: p_values[i])):
        if p_values[place] * (len(p_values) - step) > ALPHA:
            break
        rejected.add(place)
    assert {i for i, p in enumerate(adjusted) if p <= ALPHA} == rejected
    assert all(a >= p for a, p in zip(adjusted, p_values, strict=True))


def test_a_classifiers_verdict_is_mcnemars_test_and_newcombes_interval():
    first, second = rows([1] * 30 + [0] * 10), rows([1] * 12 + [0] * 26 + [1] * 2)
    (result,) = verdicts({"a": {CLEAN: first}, "b": {CLEAN: second}}, "cls", BOOTSTRAP)
    assert (result.first, result.second, result.transform, result.severity) == ("a", "b", *CLEAN)
    assert (result.n, result.groups, result.difference) == (40, 40, (18 - 2) / 40)
    assert (result.low, result.high) == paired_interval(PairedCounts(12, 18, 2, 8))
    assert result.p == stats.binomtest(18, 20).pvalue
    assert result.p_adjusted == result.p
    assert result.outcome == "first ahead"


def test_p_values_are_adjusted_over_pairs_and_cells():
    generator = np.random.default_rng(3)
    models = {m: {(t, 0): rows(generator.integers(2, size=80)) for t in "xyz"} for m in "abc"}
    table = verdicts(models, "cls", BOOTSTRAP)
    assert [(v.first, v.second, v.transform) for v in table] == [
        (*pair, t) for pair in ("ab", "ac", "bc") for t in "xyz"
    ]
    assert [v.p_adjusted for v in table] == holm([v.p for v in table])


def test_swapping_the_models_turns_the_verdict_around():
    first, other = rows([1] * 30 + [0] * 10), rows([0] * 25 + [1] * 15)
    (result,) = verdicts({"a": {CLEAN: first}, "b": {CLEAN: other}}, "cls", BOOTSTRAP)
    (swapped,) = verdicts({"b": {CLEAN: other}, "a": {CLEAN: first}}, "cls", BOOTSTRAP)
    assert (swapped.difference, swapped.p) == (-result.difference, result.p)
    assert (swapped.low, swapped.high) == pytest.approx((-result.high, -result.low))
    assert {result.outcome, swapped.outcome} == {"first ahead", "second ahead"}


def test_a_segmenters_verdict_is_of_its_groups():
    first, second = mask_rows([90, 80, 85, 95, 70, 88]), mask_rows([80, 70, 80, 90, 65, 80])
    (result,) = verdicts({"a": {CLEAN: first}, "b": {CLEAN: second}}, "seg", BOOTSTRAP)
    dice = [2 * t / (2 * t + (100 - t)) for t in (90, 80, 85, 95, 70, 88)]
    other = [2 * t / (2 * t + (100 - t)) for t in (80, 70, 80, 90, 65, 80)]
    differences = np.subtract(dice, other)
    assert (result.n, result.groups) == (6, 6)
    assert result.difference == pytest.approx(differences.mean())
    assert result.p == 2 / 2**6  # all differences have one sign
    interval = BOOTSTRAP.mean(differences)
    assert (result.low, result.high) == pytest.approx(interval)


def test_one_group_gives_no_test():
    models = {m: {CLEAN: mask_rows([90, t], ["p", "p"])} for m, t in (("a", 80), ("b", 10))}
    (result,) = verdicts(models, "seg", BOOTSTRAP)
    assert (result.groups, result.p, result.p_adjusted, result.low) == (1, None, None, None)
    assert result.outcome == "no difference shown"
    (rank, _) = rank_probabilities(models, "seg", BOOTSTRAP)
    assert (rank.model, rank.low, rank.probabilities) == ("a", None, ())


def test_images_of_one_model_only_are_left_out():
    models = {"a": {("fog", 2): rows([1, 1, 0, 1])}, "b": {("fog", 2): rows([0, 1, 0])}}
    (result,) = verdicts(models, "cls", BOOTSTRAP)
    assert (result.n, result.difference) == (3, 1 / 3)
    assert agreements(models)[0].n == 3
    assert rank_probabilities(models, "cls", BOOTSTRAP)[0].n == 3


def test_the_order_of_rows_does_not_matter():
    first, other = rows([1, 1, 0, 0, 1]), rows([1, 0, 0, 1, 1])
    straight = verdicts({"a": {CLEAN: first}, "b": {CLEAN: other}}, "cls", BOOTSTRAP)
    turned = verdicts({"a": {CLEAN: first[::-1]}, "b": {CLEAN: other}}, "cls", BOOTSTRAP)
    assert straight == turned


def test_cells_that_one_model_lacks_or_that_are_empty_have_no_verdict():
    models = {"a": {CLEAN: rows([1]), ("fog", 0): rows([1])}, "b": {CLEAN: rows([1])}}
    assert [v.transform for v in verdicts(models, "cls", BOOTSTRAP)] == ["identity"]
    empty = {"a": {CLEAN: rows([])}, "b": {CLEAN: rows([])}}
    assert verdicts(empty, "cls", BOOTSTRAP) == []
    assert rank_probabilities(empty, "cls", BOOTSTRAP) == []


def test_an_image_with_two_rows_is_refused():
    twice = pd.concat([rows([1]), rows([1])])
    with pytest.raises(ValueError, match="`00000` has several rows"):
        verdicts({"a": {CLEAN: twice}, "b": {CLEAN: twice}}, "cls", BOOTSTRAP)


def test_a_transform_counts_once_by_its_mean_over_severities():
    generator = np.random.default_rng(1)
    right = {m: generator.random((3, 60)) < share for m, share in (("a", 0.8), ("b", 0.4))}
    models = {m: {("fog", s + 1): rows(r[s]) for s in range(3)} for m, r in right.items()}
    (result,) = transform_verdicts(models, "cls", BOOTSTRAP)
    won = right["a"].sum(axis=0) - right["b"].sum(axis=0)
    assert (result.transform, result.severity, result.n) == ("fog", None, 60)
    assert result.difference == pytest.approx(won.mean() / 3)
    assert (result.low, result.high) == mean_interval(won / 3, DIFFERENCES)
    assert result.p == exact_sign_flip_p(won)


def test_a_transform_with_one_severity_is_judged_as_its_cell():
    models = {m: {("fog", 3): rows(p)} for m, p in (("a", [1, 1, 0]), ("b", [0, 1, 0]))}
    assert transform_verdicts(models, "cls", BOOTSTRAP) == verdicts(models, "cls", BOOTSTRAP)


def test_the_full_range_of_a_transform_counts_alone():
    cells = {("fog", s): rows([s != 2, 0, 1]) for s in (1, 2, 0)}
    models = {"a": cells, "b": {cell: rows([0, 0, 0]) for cell in cells}}
    (result,) = transform_verdicts(models, "cls", BOOTSTRAP)
    assert (result.severity, result.difference) == (0, 2 / 3)
    assert rank_probabilities(models, "cls", BOOTSTRAP)[0].mean == pytest.approx(2 / 3)


def test_a_segmenters_mean_over_severities():
    result = {"a": ([90, 80, 70], [60, 50, 90]), "b": ([70, 60, 90], [10, 20, 60])}
    models = {m: {("fog", s): mask_rows(t) for s, t in enumerate(p, 1)} for m, p in result.items()}
    (by_mean,) = transform_verdicts(models, "seg", BOOTSTRAP)
    by_cell = verdicts(models, "seg", BOOTSTRAP)
    assert by_mean.difference == pytest.approx(np.mean([v.difference for v in by_cell]))


@given(st.lists(st.integers(-4, 4), max_size=12))
def test_the_exact_test_agrees_with_all_choices_of_signs(differences):
    values = np.array(differences, np.int64)
    sums = [abs(np.dot(signs, values)) for signs in product((-1, 1), repeat=len(values))]
    expected = np.mean([s >= abs(values.sum()) for s in sums])
    assert exact_sign_flip_p(values) == pytest.approx(expected)
    assert sign_flip_p(values.astype(float)) == pytest.approx(expected)


def test_the_exact_test_is_mcnemars_where_there_is_one_severity():
    values = np.array([1] * 31 + [-1] * 12 + [0] * 100)
    assert exact_sign_flip_p(values) == pytest.approx(mcnemar_p(31, 12))


def test_the_exact_test_of_many_images_agrees_with_its_normal_limit():
    values = np.random.default_rng(0).integers(-5, 6, size=50_000)
    values[:150] = 5
    z = values.sum() / np.sqrt((values.astype(float) ** 2).sum())
    start = time.process_time()
    p = exact_sign_flip_p(values)
    assert time.process_time() - start < 5  # a fraction of a second on an idle core
    assert p == pytest.approx(2 * stats.norm.sf(abs(z)), rel=0.01)


def test_the_interval_of_a_mean_over_severities_covers_the_truth():
    generator = np.random.default_rng(5)
    covered = 0
    for _ in range(1000):
        hardness = generator.random((60, 1))  # images resemble themselves over severities
        first = (generator.random((60, 5)) < 0.3 + 0.6 * hardness).mean(axis=1)
        second = (generator.random((60, 5)) < 0.1 + 0.6 * hardness).mean(axis=1)
        low, high = mean_interval(first - second, DIFFERENCES)
        covered += low <= 0.2 <= high
    assert 0.925 < covered / 1000 < 0.985  # 95 %, by three standard errors and the adjustment


def test_a_claim_counts_what_is_ahead_behind_and_open():
    table = [verdict(0.01, 0.1), verdict(0.05, 0.1, n=7), verdict(0.02, -0.1), verdict(0.06, 0.3)]
    (claim,) = claims([*table, verdict(None, 0.2)])
    assert claim == Claim("a", "b", 2, 1, 2, 7)
    assert claim.transforms == 5
    assert claim.sentence() == (
        "a is ahead of b on 2 of 5 transforms, behind on 1, no difference shown on 2."
    )


def test_a_claim_is_about_the_model_that_is_ahead_more_often():
    (claim,) = claims([verdict(0.01, -0.1), verdict(0.9, 0.1)])
    assert claim.sentence().startswith("b is ahead of a on 1 of 2 transforms, behind on 0")
    (none,) = claims([verdict(0.9, -0.1)])
    assert none.sentence() == "Between a and b no difference is shown on the transform."


def test_agreement_is_counted_image_by_image():
    targets = [0] * 7
    first, other = rows([0, 0, 1, 1, 1, 2, 0], targets), rows([0, 1, 0, 1, 2, 2, 1], targets)
    (result,) = agreements({"a": {CLEAN: first}, "b": {CLEAN: other}})
    assert result == Agreement("a", "b", *CLEAN, 1, 2, 1, 2, 1)
    assert (result.n, result.share) == (7, 3 / 7)


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), min_size=1, max_size=30))
def test_error_consistency_is_cohens_kappa_of_being_right(pairs):
    first, other = np.array(pairs).T
    (result,) = agreements({"a": {CLEAN: rows(first)}, "b": {CLEAN: rows(other)}})
    if len({*(first == 1), *(other == 1)}) > 1:
        expected = cohen_kappa_score(first == 1, other == 1)
        assert result.error_consistency == pytest.approx(expected)
    else:
        assert result.error_consistency is None
    assert result.share == pytest.approx(np.mean(first == other))


def test_flips_are_counted_against_the_models_own_clean_answers():
    before, after = rows([1, 1, 1, 0, 0, 0, 2, 1]), rows([1, 1, 0, 1, 0, 2, 3, 0])
    (result,) = flips({"a": {CLEAN: before, ("fog", 1): after[::-1]}}, CLEAN)
    assert result == Flips("a", "fog", 1, 2, 1, 2, 3)
    assert (result.n, result.flipped, result.rate) == (8, 5, 5 / 8)
    assert result.rate_interval == wilson_interval(5, 8)
    assert flips({"a": {("fog", 1): after}}, CLEAN) == []


def test_ranks_agree_with_a_plain_bootstrap():
    generator = np.random.default_rng(0)
    shares = {"a": (0.6, 0.5), "b": (0.65, 0.5), "c": (0.3, 0.2)}
    models = {
        m: {(t, 0): rows(generator.random(100) < s) for t, s in zip("xy", pair, strict=True)}
        for m, pair in shares.items()
    }
    ranks = {rank.model: rank for rank in rank_probabilities(models, "cls", BOOTSTRAP)}
    scores = np.array(
        [
            np.mean([f["prediction"] == 1 for f in cells.values()], axis=0)
            for cells in models.values()
        ]
    )
    taken = np.random.default_rng(9).integers(100, size=(20_000, 100))
    means = scores[:, taken].mean(axis=2)  # (models, draws)
    best = np.isclose(means, means.max(axis=0)) / np.isclose(means, means.max(axis=0)).sum(axis=0)
    for position, model in enumerate(models):
        rank = ranks[model]
        assert rank.mean == pytest.approx(scores[position].mean())
        assert rank.probabilities[0] == pytest.approx(best[position].mean(), abs=0.04)
        ends = np.percentile(means[position], [2.5, 97.5])
        assert (rank.low, rank.high) == pytest.approx(ends, abs=0.012)
        assert sum(rank.probabilities) == pytest.approx(1)
    assert ranks["c"].probabilities == (0, 0, 1)
    assert np.sum([rank.probabilities for rank in ranks.values()], axis=0) == pytest.approx(1)


def test_equal_models_share_their_ranks():
    models = {m: {CLEAN: rows([1, 0] * 20)} for m in "abc"}
    for rank in rank_probabilities(models, "cls", BOOTSTRAP):
        assert rank.probabilities == pytest.approx([1 / 3] * 3)


def test_a_transform_counts_once_in_the_mean_whatever_its_severities():
    cells = {("fog", 1): rows([1, 1]), ("fog", 2): rows([0, 0]), ("snow", 0): rows([1, 1])}
    (rank,) = rank_probabilities({"a": cells}, "cls", BOOTSTRAP)
    assert rank.mean == (1 + 0.5) / 2


def test_models_that_lack_cells_and_images_are_compared_on_what_they_share():
    generator = np.random.default_rng(4)
    cells = [("fog", 1), ("fog", 2), ("fog", 3), ("snow", 0), ("snow", 2), ("rain", 0)]
    lacked = {"a": {("rain", 0)}, "b": {("fog", 2)}, "c": {("snow", 2)}}
    answers = {m: {c: rows(generator.integers(2, size=30)) for c in cells} for m in lacked}
    models = {
        m: {c: r.drop(generator.choice(30, 3, replace=False)) for c, r in answers[m].items()}
        for m in lacked
    }
    for name, missing in lacked.items():
        models[name] = {c: r for c, r in models[name].items() if c not in missing}

    def means(names, chosen):  # of each model: over the severities of a transform, then transforms
        parts = [models[m][c].set_index("image_id")["prediction"] for m in names for c in chosen]
        table = pd.concat(parts, axis=1, join="inner")
        table.columns = pd.MultiIndex.from_tuples([(m, *c) for m in names for c in chosen])
        scores = table.mean().groupby(level=[0, 1]).mean().groupby(level=0).mean()
        return len(table), scores

    n, expected = means("abc", [("fog", 1), ("fog", 3), ("snow", 0)])
    ranks = rank_probabilities(models, "cls", BOOTSTRAP)
    assert [r.model for r in ranks] == list(expected.sort_values(ascending=False).index)
    assert {r.model: (r.mean, r.n) for r in ranks} == {
        m: (pytest.approx(mean), n) for m, mean in expected.items()
    }
    for line in transform_verdicts(models, "cls", BOOTSTRAP):
        pair = line.first + line.second
        fog = [("fog", s) for s in (1, 2, 3) if s != 2 or "b" not in pair]
        n, scores = means(pair, {"fog": fog}.get(line.transform, [(line.transform, 0)]))
        assert (line.n, line.difference) == (n, pytest.approx(scores.iloc[0] - scores.iloc[1]))


def test_cells_without_a_test_do_not_count_in_holms_correction():
    few = {m: mask_rows([90, t], ["p", "p"]) for m, t in (("a", 80), ("b", 10))}
    many = {m: mask_rows(t) for m, t in (("a", [90, 80, 85, 95]), ("b", [80, 70, 80, 90]))}
    models = {m: {("fog", 0): few[m], ("snow", 0): many[m]} for m in "ab"}
    fog, snow = verdicts(models, "seg", BOOTSTRAP)
    assert (fog.p_adjusted, snow.p_adjusted) == (None, snow.p)
    assert snow.p == 2 / 2**4


def test_ranks_depend_on_the_seed_alone():
    generator = np.random.default_rng(0)
    models = {m: {CLEAN: rows(generator.integers(2, size=50))} for m in "ab"}
    first = rank_probabilities(models, "cls", BOOTSTRAP)
    assert first == rank_probabilities(models, "cls", BOOTSTRAP)
    assert first != rank_probabilities(models, "cls", Bootstrap(1))


def test_ranks_of_segmenters_resample_groups():
    groups = ["p", "p", "q", "q", "r", "r"]
    hits = {"a": [9, 9, 80, 80, 50, 50], "b": [9, 9, 70, 90, 40, 60]}
    models = {m: {CLEAN: mask_rows(t, groups)} for m, t in hits.items()}
    first, second = rank_probabilities(models, "seg", BOOTSTRAP)
    assert first.groups == second.groups == 3
    assert first.probabilities == pytest.approx([0.5, 0.5])  # the pooled groups are alike
