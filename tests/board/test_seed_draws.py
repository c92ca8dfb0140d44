"""The luck of the trained models: means over run seeds, their intervals, differences and ranks."""

from __future__ import annotations

import numpy as np
import pytest

from tdabench.bootstrap import Draws
from tdabench.results.seed_draws import ahead, alone, at_shared, best_of, combined, difference, over_seeds, rank_groups


def still(value, n=2000):
    """Return draws that do not vary."""
    return Draws(value, *(np.full(n, value) for _ in range(3)))


def test_the_interval_of_several_seeds_is_that_of_a_mean_of_few_values():
    values = np.array([0.20, 0.25, 0.33])
    found = over_seeds({seed: [still(value)] for seed, value in enumerate(values)})
    low, high = found.interval()
    half = 4.303 * values.std(ddof=1) / np.sqrt(3)  # t distribution, 2 degrees of freedom
    assert found.estimate == pytest.approx(values.mean())
    assert (high - low) / 2 == pytest.approx(half, rel=0.15)
    assert (low + high) / 2 == pytest.approx(values.mean(), abs=1e-3)


def test_intervals_over_three_seeds_cover_the_mean_over_all():
    rng = np.random.default_rng(0)
    covered = 0
    for _ in range(200):
        low, high = over_seeds({s: [still(v, 400)] for s, v in enumerate(rng.normal(size=3))}).interval()
        covered += low <= 0 <= high
    assert 183 <= covered <= 197


def test_what_a_seed_does_to_two_entries_alike_cancels_in_their_difference():
    luck = [0.0, 0.05, -0.1]
    one, better = (over_seeds({s: [still(base + v)] for s, v in enumerate(luck)}) for base in (0.2, 0.3))
    low, high = (better - one).interval()
    assert (low, high) == pytest.approx((0.1, 0.1))
    assert better.corrected() - one.corrected() == pytest.approx(0.1), "draw by draw, for what is not linear"
    others = over_seeds({s + 3: [still(0.3 + v)] for s, v in enumerate(luck)})
    low, high = (others - one).interval()
    assert high - low > 0.2, "seeds that are not shared do not pair"


def test_entries_are_compared_at_the_seeds_that_they_share():
    """Seed 0 is lucky for both: the one that was run with it alone must not be held against the other's mean."""
    many = over_seeds({0: [still(0.4)], 1: [still(0.3)], 2: [still(0.2)]})
    lucky = over_seeds({0: [still(0.41)]})
    first, second = at_shared([many, lucky])
    assert (first - second).estimate == pytest.approx(-0.01)
    stranger = over_seeds({7: [still(0.35)]})
    assert at_shared([many, stranger]) == [many, stranger]
    assert (many - stranger).estimate == pytest.approx(-0.05)


def test_one_seed_adds_nothing_and_repetitions_weigh_as_one():
    assert over_seeds({7: [still(0.2)]}).interval() == (0.2, 0.2)
    twice = over_seeds({0: [still(0.1), still(0.2)], 1: [still(0.45)]})
    assert twice.estimate == pytest.approx(0.3)


def spread(value, stream, half=0.02, n=2000):
    """Return draws that vary by ``half`` either way, as a stream of its own has it."""
    draws = value + half / 1.96 * np.random.default_rng(stream).standard_normal(n)
    return Draws(value, draws, np.full(n, value), draws)


def test_ranks_are_shared_where_the_difference_is_not_significant():
    found = [over_seeds({0: [spread(value, stream)]}) for stream, value in enumerate((0.2, 0.40, 0.39))]
    assert rank_groups(found) == [2, 1, 1]
    assert rank_groups(found[:1]) == [1]
    assert rank_groups([]) == []


def test_what_is_better_by_the_luck_of_its_models_alone_shares_a_rank():
    """Each run of the one is above each run of the other by its own interval, and models differ by more."""
    one, other = ({s: [spread(v, s)] for s, v in some} for some in (((0, 0.28), (1, 0.36)), ((2, 0.18), (3, 0.26))))
    low, high = difference(over_seeds(one), over_seeds(other))[1:]
    assert low < 0 < high
    assert rank_groups([over_seeds(one), over_seeds(other)]) == [1, 1]
    assert rank_groups([over_seeds({0: one[0]}), over_seeds({2: other[2]})]) == [1, 2], "one seed cannot know"


def test_what_seeds_do_to_all_alike_parts_ranks_all_the_same():
    luck = {0: 0.0, 1: 0.1, 2: -0.2}
    better, worse = (over_seeds({s: [spread(base + v, 0)] for s, v in luck.items()}) for base in (0.3, 0.27))
    assert rank_groups([worse, better]) == [2, 1]


def test_ranks_compare_at_shared_seeds():
    """The single run is of the seed that is lucky for the others as well, and there it is worse."""
    lucky, many = over_seeds({0: [still(0.41)]}), over_seeds({0: [still(0.45)], 1: [still(0.3)], 2: [still(0.2)]})
    assert difference(lucky, many)[0] == pytest.approx(-0.04)
    assert rank_groups([lucky, many]) == [2, 1]


def test_a_higher_mean_is_not_the_best_where_it_is_worse_at_the_seed_that_both_have():
    """The single run is of the lucky seed and below the other's run of it, but above the mean of its three."""
    many = over_seeds({0: [still(0.30)], 1: [still(0.20)], 2: [still(0.22)]})
    lucky = over_seeds({0: [still(0.285)]})
    assert lucky.estimate > many.estimate
    assert (ahead(many, lucky), ahead(lucky, many)) == (1, -1)
    assert (best_of([lucky, many]), best_of([many, lucky])) == (1, 0)
    assert rank_groups([lucky, many]) == [2, 1]
    level = over_seeds({0: [spread(0.235, 1)], 1: [spread(0.235, 2)], 2: [spread(0.235, 3)]})
    assert rank_groups([lucky, many, level]) == [2, 1, 1], "what is level with the best joins it past the lucky one"


def test_where_each_has_one_that_is_better_the_highest_lds_is_the_best():
    """Each pair meets at two other seeds: there the first is above the second, the second the third, it the first."""
    luck = ({(0, 1): 0.3, (4, 5): 0.1}, {(0, 1): 0.2, (2, 3): 0.21}, {(2, 3): 0.1, (4, 5): 0.2})
    circle = [over_seeds({s: [still(value)] for seeds, value in one.items() for s in seeds}) for one in luck]
    assert [ahead(circle[i], circle[(i + 1) % 3]) for i in range(3)] == [1, 1, 1]
    assert [found.estimate for found in circle] == pytest.approx([0.2, 0.205, 0.15])
    assert best_of(circle) == 1
    assert rank_groups(circle) == [1, 1, 2], "the one that is better than it is not ranked below it"


def test_one_common_seed_of_several_pairs_nothing():
    """It would leave out the luck of that seed, and the other runs."""
    first = over_seeds({seed: [still(value)] for seed, value in enumerate((0.40, 0.34, 0.28, 0.34))})
    second = over_seeds({seed + 3: [still(value)] for seed, value in enumerate((0.33, 0.40, 0.28, 0.34))})
    assert at_shared([first, second]) == [first, second]
    value, low, high = difference(first, second)
    assert value == pytest.approx(0.0025)
    assert low < -0.05
    assert high > 0.05


def known_of(values, stream, *, own=0.02, shared=0.03, models=1, n=2000):
    """Return the draws of runs with the seeds of ``values``, where it is known how far an LDS moves with the seed."""
    told = {seed: alone(seed, stream, own=own, shared=shared, models=models, n=n) for seed in values}
    return over_seeds({seed: [still(value, n)] for seed, value in values.items()}, told)


def of_one(value, stream, seed=0, **known):
    return known_of({seed: value}, stream, **known)


def half(interval):
    return (interval[1] - interval[0]) / 2


def test_one_seed_has_the_luck_that_the_task_tells():
    found = of_one(0.3, 1)
    low, high = found.interval()
    assert (high - low) / 2 == pytest.approx(1.96 * np.hypot(0.02, 0.03), rel=0.08)
    assert (low + high) / 2 == pytest.approx(0.3, abs=1e-3)
    assert (found.knows_luck, over_seeds({0: [still(0.3)]}).knows_luck) == (True, False)


def test_at_one_seed_what_all_share_cancels_and_what_is_their_own_does_not():
    value, low, high = difference(of_one(0.34, 1), of_one(0.3, 2))
    assert value == pytest.approx(0.04)
    assert (high - low) / 2 == pytest.approx(1.96 * 0.02 * np.sqrt(2), rel=0.06)
    assert low < 0, "0.04 may be luck"
    apart = difference(of_one(0.34, 1, seed=0), of_one(0.3, 2, seed=1))
    assert (apart[2] - apart[1]) / 2 == pytest.approx(1.96 * np.hypot(0.02, 0.03) * np.sqrt(2), rel=0.06)
    assert rank_groups([of_one(0.34, 1), of_one(0.3, 2)]) == [1, 1]
    assert rank_groups([of_one(0.36, 1), of_one(0.3, 2)]) == [1, 2]


@pytest.mark.parametrize(("values", "factor"), [((0.30, 0.34), 2.571), ((0.30, 0.36, 0.31), 2.447)])
def test_the_spread_of_few_seeds_is_pooled_with_the_task_s(values, factor):
    several, n = known_of(dict(enumerate(values)), 1), len(values)
    pooled = ((n - 1) * np.var(values, ddof=1) + 4 * (0.02**2 + 0.03**2)) / (n - 1 + 4)
    assert half(several.interval()) == pytest.approx(factor * np.sqrt(pooled / n), rel=0.08)  # t, n + 3 degrees


def test_seeds_that_differ_as_the_task_says_tell_more_than_one():
    halves = [half(of_one(0.3, 1).interval())]
    halves += [half(known_of(dict(enumerate(0.3 + d)), 1).interval()) for d in deviations(0.036)]
    assert halves == sorted(halves, reverse=True)


def deviations(spread):
    """Return those of two, three and four seeds that have a standard deviation."""
    for n in (2, 3, 4):
        steps = np.arange(n) - (n - 1) / 2
        yield spread * steps / steps.std(ddof=1)


def test_one_of_several_seeds_has_the_luck_that_the_task_tells():
    several, single = known_of({0: 0.30, 1: 0.32, 2: 0.31}, 1), of_one(0.25, 2)
    value, *interval = difference(several, single)
    assert value == pytest.approx(0.05), "at the seed of the single run"
    assert half(interval) == pytest.approx(1.96 * 0.02 * np.sqrt(2), rel=0.06)


def test_a_larger_ensemble_has_the_models_of_a_smaller_one_among_its_own():
    one, five = of_one(0.3, 1), of_one(0.4, 2, models=5)
    _, *interval = difference(five, one)
    assert half(interval) == pytest.approx(1.96 * np.sqrt(0.02**2 * (1 + 1 / 5) + 0.03**2 * (1 - 1 / 5)), rel=0.06)
    _, *alike = difference(five, of_one(0.3, 3, models=5))
    assert half(alike) == pytest.approx(1.96 * 0.02 * np.sqrt(2 / 5), rel=0.06), "what they share cancels"
    _, *apart = difference(five, of_one(0.3, 3, seed=1, models=5))
    assert half(apart) == pytest.approx(1.96 * np.hypot(0.02, 0.03) * np.sqrt(2 / 5), rel=0.06), "other models"


@pytest.mark.parametrize("n_seeds", [1, 2, 3, 5])
@pytest.mark.parametrize("models", [1, 5])
def test_intervals_of_a_difference_cover_the_true_one(n_seeds, models):
    """Where LDS move as they are taken to move: the luck of the same models, and each configuration's own."""
    rng, covered = np.random.default_rng([n_seeds, models]), 0
    for trial in range(300):
        lucks, seeds = rng.normal(0, 0.03, (n_seeds, models)), range(trial * 10, trial * 10 + n_seeds)
        one = lucks[:, 0] + rng.normal(0, 0.02, n_seeds)
        other = lucks.mean(axis=1) + rng.normal(0, 0.02 / np.sqrt(models), n_seeds)
        a, b = (dict(zip(seeds, values, strict=True)) for values in (one, other))
        _, low, high = difference(known_of(a, 1, n=400), known_of(b, 2, models=models, n=400))
        covered += low <= 0 <= high
    assert 0.92 <= covered / 300 < 1, "wider than need be where seeds differ just as the task says"


def test_a_sum_of_single_seeds_keeps_what_is_known_of_their_luck():
    mean = combined([of_one(0.3, 1), of_one(0.4, 2)], [0.5, 0.5])
    assert mean.knows_luck
    assert half(mean.interval()) == pytest.approx(1.96 * np.hypot(0.02 / np.sqrt(2), 0.03), rel=0.05)
