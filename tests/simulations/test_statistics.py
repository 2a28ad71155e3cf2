"""From records to numbers, claims and sentences, against answers worked out by hand."""

import math
from dataclasses import replace

import numpy as np
import pytest
from scipy.stats import t, wilcoxon

from common.errors import InputError
from simulations.claims import claims_of
from simulations.experiments import EXPERIMENTS, Experiment
from simulations.records import Record
from simulations.sentences import gap_sentence, headlines, sentence
from simulations.significance import holm, signed_rank_p
from simulations.statistics import Result, interval_of, result_of
from simulations.way import Way

SMSP, L1 = Way("SMSP"), Way("L1")
TWO = Experiment("two", "Which?", (SMSP, L1), x="way", against=L1, value="after")


def records(way: Way, values: dict[str, float], seed: int = 0, measured: str = "after") -> list[Record]:
    return [Record(seed, task, way, {measured: value}) for task, value in values.items()]


def tasks(*values: float) -> dict[str, float]:
    return {f"new0-{number:02d}": value for number, value in enumerate(values)}


def test_mean_spread_and_interval_are_over_tasks():
    result = result_of(TWO, records(SMSP, tasks(0.4, 0.5, 0.6)))
    (point,) = result.lines[0].points
    assert (point.mean, point.spread, point.tasks, point.seeds) == pytest.approx((0.5, 0.1, 3, 1))
    half = 4.302653 * 0.1 / math.sqrt(3)  # Student's t for two degrees of freedom
    assert point.interval == pytest.approx((0.5 - half, 0.5 + half), abs=1e-6)


def test_a_task_counts_once_however_many_seeds_it_has():
    own = records(SMSP, tasks(0.4, 0.8)) + records(SMSP, tasks(0.6), seed=1)
    (point,) = result_of(TWO, own).points
    assert (point.mean, point.tasks, point.seeds) == pytest.approx((0.65, 2, 2))


def test_one_task_has_no_spread_and_no_interval():
    (point,) = result_of(TWO, records(SMSP, tasks(0.4))).points
    assert (point.spread, point.interval) == (None, None)


def test_differences_are_paired_over_the_tasks_that_both_have():
    # Unpaired means would put SMSP below: it lacks the easiest task.
    result = result_of(TWO, records(SMSP, tasks(0.3, 0.4)) + records(L1, tasks(0.2, 0.3, 0.9)))
    (compared,) = result.comparisons
    assert compared.line == "SMSP"
    assert compared.against == "L1"
    assert compared.difference == pytest.approx(0.1)
    assert compared.tasks == 2
    assert (compared.test, compared.p, compared.verdict) == ("too few", None, "too few")


@pytest.mark.parametrize("seed", range(4))
def test_signed_ranks_agree_with_scipy_where_nothing_ties(seed):
    differences = np.random.default_rng(seed).normal(0.4, 1, 14)
    assert signed_rank_p(differences) == pytest.approx(wilcoxon(differences, method="exact").pvalue)


def test_signed_ranks_with_ties_count_every_choice_of_signs():
    # Ranks 1.5 1.5 3; of the 8 sums 0 1.5 1.5 3 3 4.5 4.5 6 three are as far out as 1.5, on each side.
    assert signed_rank_p(np.array([-1.0, 1.0, 2.0])) == pytest.approx(2 * 3 / 8)
    assert signed_rank_p(np.array([1.0] * 6)) == pytest.approx(2 / 64)


def test_six_tasks_that_all_differ_the_same_way_tell_two_ways_apart():
    better = [0.41, 0.52, 0.63, 0.44, 0.55, 0.66]
    own = records(SMSP, tasks(*better)) + records(L1, tasks(0.4, 0.5, 0.6, 0.4, 0.5, 0.6))
    (compared,) = result_of(TWO, own).comparisons
    assert compared.p == compared.corrected == pytest.approx(2 / 64)
    assert compared.verdict == "above"
    assert compared.test == "Wilcoxon signed-rank"


def test_holm_is_as_worked_out_by_hand():
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.9, 0.8]) == [1.0, 1.0]
    assert holm([]) == []


def test_rounding_errors_break_no_tie():
    # 0.3 - 0.2 and 0.2 - 0.1 differ in their last bit.
    values = ([0.3, 0.2, 0.7, 0.6, 0.5, 0.4], [0.2, 0.1, 0.6, 0.5, 0.4, 0.5])
    own = records(SMSP, tasks(*values[0])) + records(L1, tasks(*values[1]))
    (compared,) = result_of(TWO, own).comparisons
    assert compared.p == pytest.approx(signed_rank_p(np.array([1, 1, 1, 1, 1, -1])))


def held_against(extra: np.ndarray) -> Result:
    """SMSP against L1, so far above it on each task."""
    values = np.random.default_rng(0).uniform(0.3, 0.6, len(extra))
    return result_of(TWO, records(SMSP, tasks(*(values + extra))) + records(L1, tasks(*values)))


def test_equal_on_every_task_is_the_same():
    same = held_against(np.zeros(12))
    assert (same.comparisons[0].verdict, same.comparisons[0].differing) == ("same", 0)
    assert headlines(same) == [
        "SMSP and L1 come to the same on every task after 50 iterations (12 tasks, 1 seed)."
    ]


def test_what_is_not_significant_is_no_tie_but_no_difference_shown():
    noise = 0.02 * np.array([1, -1.1] * 6) * np.linspace(1, 2, 12)
    found = held_against(noise)
    assert found.comparisons[0].verdict == "not shown"
    assert headlines(found)[0].startswith("No difference shown: SMSP and L1 after 50 iterations (")


@pytest.mark.parametrize(
    ("spread", "verdict"),
    [(0.014, "alike"), (0.017, "not shown")],  # half intervals of 0.0093 and 0.0113
)
def test_ways_are_alike_only_where_the_whole_interval_is_within_a_point(spread, verdict):
    found = held_against(spread * np.array([1, -1] * 6))
    assert found.comparisons[0].interval[1] == pytest.approx(
        t.ppf(0.975, 11) * spread / math.sqrt(11), abs=1e-6
    )
    assert found.comparisons[0].verdict == verdict
    assert ("Alike within 1 point: SMSP and L1" in headlines(found)[0]) == (verdict == "alike")


def test_what_can_be_decided_depends_on_a_comparisons_own_differing_tasks():
    few, many = Way("SMSP"), Way("random")
    three = Experiment("three", "?", (few, many), "way", L1, "after")
    signs = np.array([1, -1, 1, -1, 1, -1])
    own = records(L1, tasks(*[0.4] * 12))
    own += records(few, tasks(*np.concatenate([0.4 + 0.1 * signs, [0.4] * 6])))
    own += records(many, tasks(*(0.4 + 0.05 * np.tile(signs, 2))))
    verdicts = {c.line: (c.differing, c.verdict) for c in result_of(three, own).comparisons}
    # Six signs alike give p = 1/32, which is 1/16 for two comparisons; twelve give 1/2048.
    assert verdicts == {"SMSP": (6, "too few"), "random": (12, "not shown")}


def test_a_comparison_that_the_others_leave_room_for_can_be_decided():
    few, clear = Way("SMSP"), Way("random")
    three = Experiment("three", "?", (few, clear), "way", L1, "after")
    own = records(L1, tasks(*[0.4] * 12))
    own += records(few, tasks(*(0.4 + 0.1 * np.array([1, -1, 1, -1, 1, -1] + [0] * 6))))
    own += records(clear, tasks(*np.linspace(0.5, 0.6, 12)))
    # Holm tests the clear one first, and then the other alone: p = 1/32 would do.
    verdicts = {c.line: c.verdict for c in result_of(three, own).comparisons}
    assert verdicts == {"SMSP": "not shown", "random": "above"}


def test_more_comparisons_than_tasks_can_decide_are_too_few_tasks():
    ways = tuple(Way("SMSP", neighbours=k) for k in range(1, 5))
    many = Experiment(
        "many", "?", ways, "way", L1, "after", line=lambda way: f"{way.mask} {way.neighbours}"
    )
    own = records(L1, tasks(*[0.1] * 6))
    for way in ways:
        own += records(way, tasks(*np.linspace(0.2, 0.3, 6)))
    result = result_of(many, own)
    assert [c.corrected for c in result.comparisons] == pytest.approx([4 * 2 / 64] * 4)
    assert {c.verdict for c in result.comparisons} == {"too few"}


def test_failed_and_missing_cells_are_counted_and_named():
    own = [
        *records(SMSP, tasks(0.5, 0.6)),
        Record(0, "new0-02", SMSP, error="RuntimeError: no memory"),
        Record(0, "new0-03", SMSP, {"at 0": 0.1}),
        Record(0, "new0-04", SMSP, {"after": math.nan}),
        *records(L1, tasks(0.4)),
    ]
    result = result_of(TWO, own)
    assert result.counted("tasks") == "1 to 2 tasks"
    smsp = [gap for gap in result.gaps if gap.line == "SMSP"]
    assert [(gap.why, gap.failed, gap.cells) for gap in smsp] == [
        ("RuntimeError: no memory", True, ("new0-02 (seed 0)",)),
        ("has no value 'after'", False, ("new0-03 (seed 0)", "new0-04 (seed 0)")),
    ]
    (lacking,) = [gap for gap in result.gaps if gap.line == "L1"]
    assert gap_sentence(lacking) == (
        "L1: not run, 4 cells: new0-01 (seed 0), new0-02 (seed 0), new0-03 (seed 0), ..."
    )


def test_an_experiment_takes_its_own_ways_and_kinds_of_tasks():
    own = records(SMSP, {"new0-00": 0.4, "five0-00": 0.9, "newer": 0.9}) + records(
        Way("SMSP", epsilon=1.0), tasks(0.9)
    )
    assert [point.mean for point in result_of(TWO, own).points] == [0.4]


def test_along_a_tuning_lines_are_held_against_the_baseline_at_the_same_iterations():
    ways = (Way("SMSP", iterations=20), Way("L1", iterations=20), Way("iterative", iterations=600))
    along = Experiment("along", "?", ways, "iterations", ways[1], "after", evaluate_at=(0, 10))
    own = [Record(0, f"new0-{k}", way, {"at 0": a, "at 10": a + 0.1, "after": a + 0.2})
           for way, a in zip(ways[:2], (0.3, 0.2), strict=True) for k in range(2)]  # fmt: skip
    own += [Record(0, f"new0-{k}", ways[2], {"after": 0.6}) for k in range(2)]
    result = result_of(along, own)
    assert {line.name: [p.x for p in line.points] for line in result.lines} == {
        "SMSP": [0, 10, 20], "L1": [0, 10, 20], "iterative": [600],
    }  # fmt: skip
    found = result.comparisons
    assert [(c.line, c.point.x, c.against_point.x, round(c.difference, 6)) for c in found] == [
        ("SMSP", 0, 0, 0.1), ("SMSP", 10, 10, 0.1), ("SMSP", 20, 20, 0.1), ("iterative", 600, 20, 0.2),
    ]  # fmt: skip


def test_along_another_axis_the_baselines_own_line_is_held_against_itself():
    ways = tuple(Way(mask, entries=n) for mask in ("SMSP", "everyone") for n in (0, 60))
    sizes = Experiment("sizes", "?", ways, "entries", ways[0], "after")
    own = [r for k, way in enumerate(ways) for r in records(way, tasks(0.1 * k, 0.1 * k + 0.1))]
    found = result_of(sizes, own).comparisons
    assert [(c.line, c.point.x, c.against, c.against_point.x) for c in found] == [
        ("SMSP", 60, "SMSP", 0), ("everyone", 0, "SMSP", 0), ("everyone", 60, "SMSP", 60),
    ]  # fmt: skip
    assert sentence(sizes, found[0]).startswith(
        "Too few tasks to say whether SMSP with a library of 60 tasks or SMSP with a library of 0 tasks "
        "is better after 50 iterations (+10.0 points, 2 tasks, 1 seed"
    )


def test_two_ways_at_one_place_of_a_figure_are_refused():
    both = Experiment("both", "?", (SMSP, Way("SMSP", neighbours=3)), "way", L1)
    with pytest.raises(InputError, match="both as 'SMSP'"):
        result_of(both, records(SMSP, tasks(0.5)))


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_no_experiment_draws_two_ways_as_one(name):
    experiment = EXPERIMENTS[name]
    ways = dict.fromkeys((*experiment.ways, experiment.against))
    own = [Record(0, f"{experiment.tasks[0]}0-00", way, {"after": 0.5, "recall": 0.5}) for way in ways]
    assert result_of(experiment, own).lines


def test_a_difference_is_told_in_plain_words():
    extra = np.linspace(0.05, 0.07, 12)
    better = Way("SMSP", iterations=25, healing="library")
    one = Experiment("one", "?", (better,), "way", Way("L1", iterations=25))
    own = records(better, tasks(*(0.4 + extra)), measured="at 25")
    own += records(one.against, tasks(*[0.4] * 12), measured="at 25")
    half = t.ppf(0.975, 11) * extra.std(ddof=1) / math.sqrt(12)
    assert headlines(result_of(one, own)) == [
        "SMSP healed is 6.0 points above L1 after 25 iterations (12 tasks, 1 seed, 95 % interval "
        f"{6 - 100 * half:.1f} to {6 + 100 * half:.1f}, p < 0.001)."
    ]


def claim_about(words: str, own: list[Record], by_lot: dict[tuple[int, str], float] | None = None):
    (claim,) = [claim for claim in claims_of(own, by_lot=by_lot) if words in claim.text]
    return claim


@pytest.mark.parametrize(
    ("ahead", "spread", "holds"),
    [(0.05, 0.01, "yes"), (0.01, 0.01, "no"), (0.03, 0.05, "unclear"), (None, 0, "not measured")],
)
def test_a_claim_holds_where_its_whole_interval_does(ahead, spread, holds):
    around = spread * np.array([1, -1] * 6)
    own = records(L1, tasks(*[0.4] * 12), measured="at 25")
    own += records(Way("random"), tasks(*[0.3] * 12), measured="at 25")
    if ahead is not None:
        own += records(SMSP, tasks(*(0.4 + ahead + around)), measured="at 25")
    claim = claim_about("best one-shot criterion", own)
    assert claim.holds == holds
    assert claim.value == (None if ahead is None else pytest.approx(ahead))


def test_a_claim_on_few_tasks_cannot_be_said_to_hold():
    own = records(SMSP, tasks(0.6, 0.61)) + records(Way("iterative", iterations=600), tasks(0.4, 0.41))
    claim = claim_about("iterative pruning", own)
    assert (claim.holds, claim.tasks) == ("unclear", 2)


def test_the_library_claim_is_the_share_of_the_gap_that_is_closed():
    own = []
    for way, value in ((L1, 0.4), (Way("dense"), 0.6), (Way("SMSP", entries=0), 0.4)):
        own += records(way, tasks(*[value] * 6), measured="at 25")
    gains = np.array([0.10, 0.12, 0.14, 0.10, 0.12, 0.14])
    own += records(Way("SMSP", entries=200), tasks(*(0.4 + gains)), measured="at 25")
    claim = claim_about("a library of 200 tasks", own)
    assert claim.value == pytest.approx(0.12 / 0.2)
    # The gap does not vary, so the share's interval is that of the gain, over the gap.
    assert claim.interval == pytest.approx(np.array(interval_of(gains)) / 0.2)
    assert claim.holds == "yes"


def test_a_healed_library_is_held_against_what_an_operator_heals_without_one():
    own = []
    empty = Way("SMSP", entries=0)
    for way, value in (
        (L1, 0.4),
        (Way("dense"), 0.6),
        (empty, 0.4),
        (replace(empty, healing="empty"), 0.46),
        (replace(empty, healing="library"), 0.3),
        (Way("SMSP", entries=200, healing="library"), 0.5),
    ):
        own += records(way, tasks(*[value] * 6), measured="at 25")
    claim = claim_about("a library of 200 tasks", own)
    assert claim.text.startswith("SMSP healed")
    assert claim.value == pytest.approx(0.04 / 0.2)


def early(way: Way, *values: float) -> list[Record]:
    """What the way came to at 25 iterations."""
    return records(way, tasks(*values), measured="at 25")


def test_a_claim_holds_the_middle_of_a_tuning_against_no_end_of_a_shorter_one():
    short = Way("SMSP", iterations=25)
    own = early(short, *[0.6] * 6) + early(L1, *[0.5] * 6)
    assert claim_about("best one-shot criterion", own).holds == "not measured"
    own += early(replace(L1, iterations=25), *[0.4] * 6)
    claim = claim_about("best one-shot criterion", own)
    assert claim.value == pytest.approx(0.2)
    assert claim.text.endswith("criterion (L1, of 1) after 25 iterations")


def test_of_two_lengths_that_all_sides_share_a_claim_takes_the_default_one_and_says_so():
    own = []
    for length, ours in ((50, 0.55), (25, 0.65)):
        own += early(Way("SMSP", iterations=length), *[ours] * 6)
        own += early(Way("L1", iterations=length), *[0.5] * 6)
    claim = claim_about("best one-shot criterion", own)
    assert claim.value == pytest.approx(0.05)
    assert claim.text.endswith("after 25 of 50 iterations")


def test_the_best_criterion_is_that_of_the_same_tasks():
    own = early(SMSP, *[0.6] * 5, 0.9) + early(L1, *[0.5] * 5, 0.8)
    own += [r for r in early(Way("Taylor"), *[0.4] * 5, 0.85) if r.task.endswith("05")]
    claim = claim_about("best one-shot criterion (L1, of 2)", own)
    assert (claim.value, claim.tasks) == (pytest.approx(0.1), 6)


def test_the_library_claim_needs_all_sides_in_one_length_of_tuning():
    own = early(Way("dense"), *[0.6] * 6) + early(L1, *[0.4] * 6)
    for entries, value in ((0, 0.4), (200, 0.5)):
        own += early(Way("SMSP", iterations=25, entries=entries), *[value] * 6)
    assert claim_about("a library of 200 tasks", own).holds == "not measured"
    own += early(Way("dense", iterations=25), *[0.6] * 6) + early(Way("L1", iterations=25), *[0.4] * 6)
    claim = claim_about("a library of 200 tasks", own)
    assert claim.value == pytest.approx(0.5)
    assert claim.text.endswith("after 25 iterations")


def test_every_claim_can_be_measured_by_the_experiments():
    own = [
        Record(
            0,
            f"{kind}0-{k:02d}",
            way,
            dict.fromkeys(("at 25", "after", "recall"), 0.5 + 0.1 * (way.mask == "dense")),
        )
        for experiment in EXPERIMENTS.values()
        for way in {experiment.against, *experiment.ways}
        for kind in experiment.tasks
        for k in range(6)
    ]
    lots = {(record.seed, record.task): 0.3 for record in own}
    assert [c.text for c in claims_of(own, 200, 100, lots) if c.holds == "not measured"] == []


def test_what_is_served_is_judged_on_tasks_by_which_nothing_was_chosen():
    def on(kind: str, way: Way, value: float, name: str) -> list[Record]:
        return records(way, {f"{kind}0-{k:02d}": value for k in range(6)}, measured=name)

    served, iterative = Way("served", healing="served"), Way("iterative", iterations=600)
    own = on("new", served, 0.9, "after") + on("new", iterative, 0.1, "after")
    assert not [claim for claim in claims_of(own) if "nothing was chosen" in claim.text]
    own += on("fresh", served, 0.6, "after") + on("fresh", iterative, 0.5, "after")
    healed, voted, *_ = [claim for claim in claims_of(own) if "nothing was chosen" in claim.text]
    assert healed.text.startswith(
        "On tasks by which nothing was chosen, served healed with 50 iterations"
    )
    assert (healed.value, healed.tasks, healed.holds) == (pytest.approx(0.1), 6, "yes")
    assert voted.holds == "not measured"


def test_a_claim_names_a_healing_that_is_not_of_the_runs_own_length():
    longer = Way("L1", healing="empty", healing_iterations=4000)
    own = early(L1, *[0.4] * 6) + early(longer, *[0.6] * 6)
    claim = claim_about("best one-shot criterion", own)
    assert claim.text.startswith("L1 healed without a library (4,000 iterations of healing) is")
    own += early(replace(longer, healing_iterations=None), *[0.5] * 6)
    claim = claim_about("best one-shot criterion", own)
    assert claim.text.startswith("L1 healed without a library is")
    assert claim.value == pytest.approx(0.1)


def test_recall_claims_are_shares_of_what_the_other_finds_above_lots():
    own = []
    for way, recall in ((Way("neighbours"), 0.76), (Way("neighbours", probe="backbone"), 0.8)):
        own += records(way, tasks(*[recall] * 6), measured="recall")
    lots = dict.fromkeys(((0, task) for task in tasks(*[0] * 6)), 0.3)
    assert claim_about("backbone's recall has above lots, for tasks of ten", own, lots).value == (
        pytest.approx(0.46 / 0.5)
    )
    assert claim_about("recall without noise has above lots, for tasks of ten", own, lots).holds == (
        "not measured"
    )


def test_what_is_found_for_one_kind_of_tasks_does_not_hide_what_is_not_for_another():
    own, lots = [], {}
    around = 0.01 * np.array([1, -1] * 3)
    for kind, found in (("new", 0.9), ("five", 0.8), ("shifted", 0.2)):
        of_kind = {f"{kind}0-{k:02d}": found + extra for k, extra in enumerate(around)}
        lots |= {(0, task): 0.3 for task in of_kind}
        for way in (Way("neighbours"), Way("neighbours", probe="backbone")):
            own += records(way, of_kind, measured="recall")
    claims = [claim for claim in claims_of(own, by_lot=lots) if "small probe" in claim.text]
    assert [(c.holds, round(c.value, 6), c.tasks) for c in claims] == [
        ("yes", 1.0, 6), ("yes", 1.0, 6), ("no", -0.1, 6),
    ]  # fmt: skip
    assert [claim.text.rpartition("tasks ")[2] for claim in claims] == [
        "of ten classes", "of five classes", "of ten classes in another domain",
    ]  # fmt: skip


def test_no_experiment_pools_kinds_of_tasks():
    assert {len(experiment.tasks) for experiment in EXPERIMENTS.values()} == {1}


def test_a_recall_is_told_beside_what_lots_would_find_on_the_same_tasks():
    way = Way("neighbours")
    one = Experiment("one", "?", (way,), "way", way, "recall")
    own = records(way, tasks(0.8, 0.9), measured="recall")
    lots = {(0, "new0-00"): 0.2, (0, "new0-01"): 0.3, (0, "new0-02"): 0.7}
    result = result_of(one, own, lots)
    assert result.by_lot == pytest.approx(0.25)
    assert headlines(result) == ["By lot the recall would be 25.0 % in the mean."]
    assert result_of(one, own, {(0, "new0-00"): 0.2}).by_lot is None
    assert result_of(TWO, records(SMSP, tasks(0.8, 0.9)), lots).by_lot is None
