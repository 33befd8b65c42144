"""Degrees against DESIGN 4.1, recomputed in 50 decimal digits by bisection and a plain sort."""

import math
from decimal import Decimal, localcontext
from fractions import Fraction
from itertools import product

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import nn

from bbnet.sparsity.degrees import LAWS, allocate_degrees, as_budget, connection_count, erdos_renyi_counts, weight_count
from bbnet.sparsity.limits import smallest_degree

DETERMINISTIC_LAWS = ("log_odds", "linear", "uniform", "inverted", "traffic")
FALLING_LAWS = ("log_odds", "linear", "traffic")


def degrees(rates, fan, budget, *, silent=None, seed=0, **options):
    """`allocate_degrees` on plain lists."""
    return allocate_degrees(
        torch.tensor(rates, dtype=torch.float64),
        fan,
        budget,
        silent=None if silent is None else torch.tensor(silent),
        generator=torch.Generator().manual_seed(seed),
        **options,
    ).tolist()


def reference_smallest(fan):
    return math.ceil(max(Fraction(1), Fraction(1, 20) * fan))


def reference_line(law, rates, gain, fan):
    """The law's degrees as (offset, slope) of its free parameter, and the selectivity that breaks ties."""
    clipped = [Decimal(min(max(rate, 1e-3), 1 - 1e-3)) for rate in rates]
    log_odds = [((1 - a) / a).ln() for a in clipped]
    if law == "traffic":
        return [(Decimal(0), 1 / a) for a in clipped], log_odds
    selectivity = {
        "log_odds": log_odds,
        "linear": [(1 - 2 * a) for a in clipped],
        "uniform": [Decimal(0) for _ in clipped],
        "inverted": [-s for s in log_odds],
    }[law]
    if law == "linear":
        spread = standard_deviation(selectivity)
        factor = standard_deviation(log_odds) / spread if spread else Decimal(0)
        selectivity = [s * factor for s in selectivity]
    return [(Decimal(gain) * fan * s, Decimal(1)) for s in selectivity], selectivity


def standard_deviation(values):
    if not values:
        return Decimal(0)
    mean = sum(values) / len(values)
    return (sum((value - mean) ** 2 for value in values) / len(values)).sqrt()


def bisect_degrees(line, low, high, total):
    def clip(t):
        return [min(max(offset + slope * t, Decimal(low)), Decimal(high)) for offset, slope in line]

    reach = high + max(abs(offset) for offset, _ in line)
    left, right = -reach, reach
    for _ in range(130):
        middle = (left + right) / 2
        left, right = (middle, right) if sum(clip(middle)) < total else (left, middle)
    return clip(right)


def largest_remainder(wanted, selectivity, rates, high, total):
    floors = [math.floor(x.quantize(Decimal("1e-9"))) for x in wanted]
    remainders = [(x - floor).quantize(Decimal("1e-9")) for x, floor in zip(wanted, floors, strict=True)]
    takers = [unit for unit in range(len(wanted)) if floors[unit] < high]
    takers.sort(key=lambda unit: (-remainders[unit], -selectivity[unit], rates[unit], unit))
    for unit in takers[: total - sum(floors)]:
        floors[unit] += 1
    return floors


def reference_degrees(rates, fan, budget, law="log_odds", gain=0.10, silent=None, low=None, high=None):
    low = reference_smallest(fan) if low is None else low
    high = fan if high is None else high
    total = math.floor(Fraction(str(budget)) * len(rates) * fan + Fraction(1, 2))
    silent = silent or [False] * len(rates)
    result = [0] * len(rates)
    heard = [unit for unit in range(len(rates)) if not silent[unit]]
    unheard = [unit for unit in range(len(rates)) if silent[unit]]
    heard_total = min(total - low * len(unheard), high * len(heard))
    with localcontext() as context:
        context.prec = 50
        for group, group_law, group_total in ((heard, law, heard_total), (unheard, "uniform", total - heard_total)):
            if not group:
                continue
            its_rates = [rates[unit] for unit in group]
            line, selectivity = reference_line(group_law, its_rates, gain, fan)
            wanted = bisect_degrees(line, low, high, group_total)
            if group_law == "uniform":
                its_rates = [0] * len(group)  # ties go by the index alone
            for unit, degree in zip(
                group, largest_remainder(wanted, selectivity, its_rates, high, group_total), strict=True
            ):
                result[unit] = degree
    return result


on_rate = st.one_of(
    st.floats(0, 1), st.floats(0, 0.002), st.sampled_from([0.0, 1e-3, 0.0005, 0.1, 0.25, 0.5, 0.75, 0.999, 1.0])
)


@st.composite
def slabs(draw, most_units=8, most_fan=60):
    """Rates, fan, a feasible budget, sometimes silent units and own bounds."""
    rates = draw(st.lists(on_rate, min_size=1, max_size=most_units))
    fan = draw(st.integers(1, most_fan))
    low, high, options = reference_smallest(fan), fan, {}
    if draw(st.booleans()):
        low = options["min_degree"] = draw(st.integers(1, fan))
        high = options["max_degree"] = draw(st.integers(low, fan))
    least, most = -(-1000 * low // fan), 1000 * high // fan
    assume(least <= most)
    budget = Decimal(draw(st.integers(least, most))) / 1000
    silent = draw(st.one_of(st.none(), st.lists(st.booleans(), min_size=len(rates), max_size=len(rates))))
    return rates, fan, budget, silent, options


@settings(max_examples=150)
@given(law=st.sampled_from(DETERMINISTIC_LAWS), case=slabs(), gain=st.sampled_from([0.01, 0.10, 0.5, 2.0]))
def test_degrees_equal_a_slow_exact_reference(law, case, gain):
    rates, fan, budget, silent, options = case
    expected = reference_degrees(
        rates, fan, budget, law, gain, silent, options.get("min_degree"), options.get("max_degree")
    )
    assert degrees(rates, fan, budget, law=law, gain=gain, silent=silent, **options) == expected


@settings(max_examples=200)
@given(law=st.sampled_from(LAWS), case=slabs(most_units=40, most_fan=700), gain=st.sampled_from([0.001, 0.10, 10.0]))
def test_degrees_meet_the_budget_to_the_connection(law, case, gain):
    rates, fan, budget, silent, options = case
    found = degrees(rates, fan, budget, law=law, gain=gain, silent=silent, **options)
    assert sum(found) == math.floor(Fraction(budget) * len(rates) * fan + Fraction(1, 2))
    assert min(found) >= options.get("min_degree", reference_smallest(fan))
    assert max(found) <= options.get("max_degree", fan)


@pytest.mark.parametrize("law", DETERMINISTIC_LAWS)
def test_equal_on_rates_share_evenly_the_rest_by_index(law):
    units, fan = 7, 16
    for rate, budget in product([0.0, 0.3, 1.0], ["0.0625", "0.1", "0.37", "1"]):
        total = math.floor(Fraction(budget) * units * fan + Fraction(1, 2))
        expected = [total // units + (unit < total % units) for unit in range(units)]
        assert degrees([rate] * units, fan, budget, law=law) == expected


@settings(max_examples=120)
@given(
    law=st.sampled_from(LAWS),
    rate=st.one_of(st.sampled_from([0.0, 1.0]), st.floats(0, 1)),
    units=st.integers(1, 40),
    fan=st.integers(1, 400),
    data=st.data(),
)
def test_equal_on_rates_differ_by_one_connection_at_most(law, rate, units, fan, data):
    budget = Decimal(data.draw(st.integers(-(-1000 * reference_smallest(fan) // fan), 1000))) / 1000
    found = degrees([rate] * units, fan, budget, law=law)
    assert max(found) - min(found) <= 1
    assert sum(found) == math.floor(Fraction(budget) * units * fan + Fraction(1, 2))


@pytest.mark.parametrize("law", LAWS)
def test_large_slabs_meet_the_budget_too(law):
    rates = torch.rand(1536, dtype=torch.float64) ** 4
    found = allocate_degrees(rates, 6144, "0.2", law=law, generator=torch.Generator())
    assert int(found.sum()) == math.floor(Fraction("0.2") * 1536 * 6144 + Fraction(1, 2))
    assert found.dtype == torch.int64


@pytest.mark.parametrize("law", LAWS)
def test_degrees_meet_a_budget_on_the_plateau_between_smallest_and_full(law):
    units, fan = 8, 20
    for low_units in range(1, 8):
        rates = [0.999] * low_units + [0.001] * (units - low_units)
        total = low_units + (units - low_units) * fan
        found = degrees(rates, fan, Decimal(total) / (units * fan), law=law)
        assert sum(found) == total
        if law in ("log_odds", "traffic"):
            assert found == [1] * low_units + [fan] * (units - low_units)


@pytest.mark.parametrize("law", LAWS)
def test_degrees_meet_a_budget_on_a_wide_plateau_where_rounding_leaves_a_slope(law):
    """Loud units at the smallest degree, rare ones at the full one: the slope there is a sum that should be 0."""
    generator, fan = torch.Generator().manual_seed(0), 100

    def uniform(count):
        return torch.rand(count, generator=generator, dtype=torch.float64)

    for case in range(1000 if law == "traffic" else 50):
        units = int(torch.randint(20, 300, (), generator=generator))
        loud = int(torch.randint(1, units, (), generator=generator))
        rates = torch.cat([0.5 + 0.5 * uniform(loud), 0.02 * uniform(units - loud)])
        total = 5 * loud + fan * (units - loud)
        found = allocate_degrees(rates, fan, Decimal(total) / (units * fan), law=law, generator=torch.Generator())
        assert int(found.sum()) == total, (case, units, loud)
        assert 5 <= int(found.min()) <= int(found.max()) <= fan


@pytest.mark.parametrize("law, cases", [(law, 1000 if law == "log_odds" else 200) for law in FALLING_LAWS])
def test_rarer_units_never_get_fewer_connections(law, cases):
    generator = torch.Generator().manual_seed(1)

    def integer(low, high):
        return int(torch.randint(low, high + 1, (), generator=generator))

    for _ in range(cases):
        units, fan = integer(2, 30), integer(2, 200)
        rates = torch.rand(units, generator=generator, dtype=torch.float64) ** integer(1, 8)
        if integer(0, 1):
            rates = (rates * integer(1, 20)).round() / 20
        if integer(0, 1):
            rates[: units // 2] = rates[0] + 1e-15 * torch.arange(units // 2)
        rates = rates.clamp(0, 1)
        low = reference_smallest(fan)
        budget = Decimal(integer(math.ceil(1000 * low / fan), 1000)) / 1000
        by_rate = allocate_degrees(rates, fan, budget, law=law)
        rarer = rates[:, None] < rates[None, :]
        assert not bool((rarer & (by_rate[:, None] < by_rate[None, :])).any()), (rates, fan, budget, by_rate)
        equal = rates[:, None] == rates[None, :]
        assert bool(((by_rate[:, None] - by_rate[None, :])[equal].abs() <= 1).all())


def test_a_case_worked_by_hand():
    # n = 20, U = 3, b = .30: K = floor(18 + 1/2) = 18, k_min = 1, gain * n = 2.
    # s = log(9) = 2.197, 0, -2.197: x = d0 + (4.394, 0, -4.394), nothing clipped, so d0 = 6.
    # x = 10.394, 6, 1.606: floors 10, 6, 1, and the one left over goes to the remainder .606.
    assert degrees([0.1, 0.5, 0.9], 20, "0.30") == [10, 6, 2]
    # inverted: the mirror image.
    assert degrees([0.1, 0.5, 0.9], 20, "0.30", law="inverted") == [2, 6, 10]
    # s = +-log(99) = 4.595: x = d0 + (9.190, 0, -9.190). Were nothing clipped, x_3 = -3.19; so it has k_min = 1 and
    # 2 d0 + 9.190 = 17, d0 = 3.905: floors 13, 3, 1, and the one left over goes to the remainder .905.
    assert degrees([0.01, 0.5, 0.99], 20, "0.30") == [13, 4, 1]
    # traffic: c (1 / .1 + 1 / .5 + 1 / .9) = 18, c = 1.373: x = 13.73, 2.746, 1.525; floors 16, two left over.
    assert degrees([0.1, 0.5, 0.9], 20, "0.30", law="traffic") == [14, 3, 1]
    # uniform: 19 = 7 + 6 + 6, the odd one to the first unit, whatever the on-rates.
    assert degrees([0.9, 0.1, 0.5], 20, Decimal(19) / 60, law="uniform") == [7, 6, 6]


def test_ties_go_to_larger_selectivity_then_smaller_rate_then_index():
    # Constant traffic, K = 4 of 2 x 10: c = .75 gives x = 2.5, 1.5, a tie that is no tie in s.
    assert degrees([0.5, 0.3], 10, "0.2", law="traffic") == [1, 3]
    # Both on-rates are clipped to .001, so s is the same and the raw rate decides.
    assert degrees([0.0009, 0.0001], 10, "0.25") == [2, 3]
    assert degrees([0.4, 0.4], 10, "0.25") == [3, 2]


def test_uniform_degrees_do_not_depend_on_on_rates():
    for fan, units, budget in ((12, 20, "0.10"), (24, 9, "0.23"), (96, 50, "0.10")):
        found = degrees(torch.rand(units).tolist(), fan, budget, law="uniform")
        assert max(found) - min(found) == 1  # the budget does not divide
        assert found == sorted(found, reverse=True) == degrees([0.5] * units, fan, budget, law="uniform")


@given(
    law=st.sampled_from([law for law in DETERMINISTIC_LAWS if law != "uniform"]),
    rates=st.lists(st.integers(0, 1000), min_size=2, max_size=12, unique=True),
    fan=st.integers(8, 64),
    budget=st.integers(13, 100),
    data=st.data(),
)
def test_degrees_follow_their_units_under_permutation(law, rates, fan, budget, data):
    rates = [rate / 1000 for rate in rates]
    order = data.draw(st.permutations(range(len(rates))))
    written = Decimal(budget) / 100
    straight = degrees(rates, fan, written, law=law)
    permuted = degrees([rates[unit] for unit in order], fan, written, law=law)
    assert permuted == [straight[unit] for unit in order]


@pytest.mark.parametrize("fan, smallest", [(1, 1), (8, 1), (20, 1), (21, 2), (30, 2), (140, 7), (141, 8), (6144, 308)])
def test_smallest_degree_is_an_exact_integer(fan, smallest):
    assert smallest_degree(fan) == reference_smallest(fan) == smallest
    assert min(degrees([0.5, 0.5], fan, 1)) == fan
    silent_first = degrees([0.5, 0.5, 0.5], fan, max(Decimal("0.5"), Decimal(1) / fan), silent=[True, False, False])
    assert silent_first[0] == smallest


def test_the_smallest_budget_of_a_fan_is_met():
    assert degrees([0.1, 0.5, 0.9], 140, "0.05") == [7, 7, 7]
    with pytest.raises(ValueError, match="feasible"):
        degrees([0.1, 0.5, 0.9], 30, "0.06")


def test_a_single_unit_gets_the_whole_budget():
    assert degrees([0.7], 33, "0.5") == [17]


@pytest.mark.parametrize("law", LAWS)
def test_budget_one_keeps_everything(law):
    assert degrees([0.1, 0.7, 1.0], 1, 1, law=law) == [1, 1, 1]
    assert degrees([0.0, 0.2, 0.9, 1.0], 40, "1.00", law=law, silent=[True, False, False, True]) == [40] * 4


@pytest.mark.parametrize("law", LAWS)
def test_silent_units_get_the_smallest_degree(law):
    rates = [0.0, 0.2, 0.0, 0.6, 0.9, 0.05]
    silent = [True, False, False, False, False, True]
    found = degrees(rates, 40, "0.4", law=law, silent=silent)
    assert [found[0], found[5]] == [2, 2]
    assert sum(found) == 96


@pytest.mark.parametrize("law", LAWS)
def test_silent_units_share_the_rest_evenly_once_all_others_are_full(law):
    # K = floor(.9 * 5 * 20 + .5) = 90: the two heard units take 20 each, 50 are left for three: 17 + 17 + 16.
    found = degrees([0.0, 0.3, 0.0, 0.8, 0.0], 20, "0.9", law=law, silent=[True, False, True, False, True])
    assert found == [17, 20, 17, 20, 16]
    # All units are silent.
    assert degrees([0.0] * 4, 10, "0.35", law=law, silent=[True] * 4) == [4, 4, 3, 3]


def test_read_literally_a_dead_unit_takes_the_most():
    dead_first = degrees([0.0, 0.3, 0.4], 40, "0.4")
    assert dead_first[0] == max(dead_first)


@given(case=slabs(most_units=20))
def test_shuffled_hands_the_log_odds_degrees_to_permuted_units(case):
    rates, fan, budget, silent, options = case
    plain = degrees(rates, fan, budget, silent=silent, **options)
    for seed in range(2):
        shuffled = degrees(rates, fan, budget, silent=silent, law="shuffled", seed=seed, **options)
        assert sorted(shuffled) == sorted(plain)
        assert shuffled == degrees(rates, fan, budget, silent=silent, law="shuffled", seed=seed, **options)
        if silent:
            assert [k for k, dead in zip(shuffled, silent, strict=True) if dead] == [
                k for k, dead in zip(plain, silent, strict=True) if dead
            ]


def test_shuffled_uses_one_permutation_whatever_the_on_rates():
    rates = torch.linspace(0.05, 0.95, 12, dtype=torch.float64)
    reversed_rates = rates.flip(0)

    def giver(of_rates):
        # All log-odds degrees differ here, so a degree tells whose it was.
        plain = allocate_degrees(of_rates, 200, "0.5").tolist()
        shuffled = allocate_degrees(of_rates, 200, "0.5", law="shuffled", generator=torch.Generator().manual_seed(3))
        return [plain.index(degree) for degree in shuffled.tolist()]

    assert giver(rates) == giver(reversed_rates) != list(range(12))
    seeds = {tuple(degrees(rates.tolist(), 200, "0.5", law="shuffled", seed=seed)) for seed in range(4)}
    assert len(seeds) == 4


def test_shuffled_needs_its_own_generator():
    with pytest.raises(ValueError, match="generator"):
        allocate_degrees(torch.tensor([0.1, 0.2]), 10, "0.5", law="shuffled")


@pytest.mark.parametrize("bad", [float("nan"), -0.01, 1.01, float("inf")])
def test_on_rates_outside_zero_to_one_are_refused(bad):
    for place, law in product(range(3), LAWS):
        rates = [0.2, 0.3, 0.4]
        rates[place] = bad
        with pytest.raises(ValueError, match="on-rates"):
            degrees(rates, 20, "0.5", law=law)


@pytest.mark.parametrize(
    "fan, budget, options, range_named",
    [
        (12, "0.08", {}, r"0\.0834 to 1"),
        (30, "0.05", {}, r"0\.066\d* to 1"),
        (20, "0.9", {"max_degree": 10}, r"0\.05 to 0\.5"),
        (20, "0.1", {"min_degree": 5}, r"0\.25 to 1"),
    ],
)
def test_an_infeasible_budget_is_refused_with_the_feasible_range(fan, budget, options, range_named):
    with pytest.raises(ValueError, match=range_named):
        degrees([0.1, 0.5], fan, budget, **options)


def test_an_unknown_law_is_refused_with_the_known_ones():
    with pytest.raises(ValueError, match="log_odd.*log_odds, linear, uniform, shuffled, inverted, traffic"):
        degrees([0.1], 20, "0.5", law="log_odd")


@pytest.mark.parametrize("bad", [0, 1.2, -0.5, "x", "", None, float("inf"), float("nan"), "nan"])
def test_what_is_no_budget_is_refused(bad):
    with pytest.raises(ValueError, match="budget"):
        as_budget(bad)


def test_a_budget_means_what_is_written():
    rates = torch.rand(50, dtype=torch.float64).tolist()
    written = {str(degrees(rates, 30, budget)) for budget in (0.3, "0.30", "0.3", Decimal("0.3"))}
    assert len(written) == 1


@pytest.mark.parametrize(
    "budget, units, fan, count",
    [("0.5", 3, 5, 8), ("0.5", 3, 3, 5), ("0.15", 10, 1, 2), ("0.1", 5, 5, 3), ("0.35", 1, 10, 4), ("1", 7, 9, 63)],
)
def test_half_a_connection_is_rounded_up(budget, units, fan, count):
    assert connection_count(Decimal(budget), units, fan) == count


@given(units=st.integers(1, 5000), fan=st.integers(1, 5000), budget=st.decimals("0.001", 1, places=4))
def test_the_count_is_the_nearest_to_the_budget(units, fan, budget):
    assert connection_count(budget, units, fan) == math.floor(Fraction(budget) * units * fan + Fraction(1, 2))


@st.composite
def layers(draw):
    """Slabs (units, fan, taps) of linear layers and convolutions, and a total that they can hold."""
    extent = st.sampled_from([1, 2, 3, 5, 7])
    taps = st.one_of(st.just(()), st.tuples(extent), st.tuples(extent, extent), st.tuples(extent, extent, extent))
    shapes = draw(st.lists(st.tuples(st.integers(1, 60), st.integers(1, 60), taps), min_size=1, max_size=6))
    return shapes, draw(st.integers(1, sum(math.prod((units, fan, *taps)) for units, fan, taps in shapes)))


@settings(max_examples=300)
@given(case=layers())
def test_erdos_renyi_counts_are_the_published_shares_and_exact_to_a_kernel(case, literal_erk):
    shapes, total = case
    kernels = [math.prod(taps) for *_, taps in shapes]
    counts = erdos_renyi_counts(total, shapes)
    shares = [share / kernel for share, kernel in zip(literal_erk(total, shapes), kernels, strict=True)]
    missing = total - sum(map(math.prod, zip(counts, kernels, strict=True)))
    assert 0 <= missing < max(kernels)
    for count, share, (units, fan, _) in zip(counts, shares, shapes, strict=True):
        assert 0 <= count <= units * fan
        assert math.floor(share) <= count <= math.ceil(share)
    if len(set(kernels)) == 1:
        up = [share % 1 for count, share in zip(counts, shares, strict=True) if count > share]
        down = [share % 1 for count, share in zip(counts, shares, strict=True) if count < share]
        assert not up or not down or min(up) >= max(down), "rounding is by largest remainder"


@pytest.mark.parametrize("build", ["resnet50", "vgg11", "mobilenet_v2", "transformer"])
@pytest.mark.parametrize("budget", ["0.05", "0.10", "0.25", "0.50", "0.90"])
def test_erk_of_published_networks(build, budget, literal_erk):
    """All convolutions and linear layers, depthwise ones included, as the formula does not ask what they are for."""
    if build == "transformer":
        model = nn.Transformer(64, 4, 2, 2, 256)
    else:
        models = pytest.importorskip("torchvision.models")
        with torch.device("meta"):
            model = getattr(models, build)()
    weights = [module.weight for module in model.modules() if isinstance(module, nn.Linear | nn.Conv2d)]
    shapes = [(*weight.shape[:2], tuple(weight.shape[2:])) for weight in weights]
    total = weight_count(Decimal(budget), shapes)
    assert total == math.floor(Fraction(budget) * sum(weight.numel() for weight in weights) + Fraction(1, 2))
    kernels = [math.prod(taps) for *_, taps in shapes]
    counts = erdos_renyi_counts(total, shapes)
    shares = literal_erk(total, shapes)
    for count, share, kernel in zip(counts, shares, kernels, strict=True):
        assert abs(count - share / kernel) < 1
    assert 0 <= total - sum(map(math.prod, zip(counts, kernels, strict=True))) < max(kernels)


def test_erdos_renyi_counts_worked_by_hand():
    # Densities go as (10 + 40) / 400 = 1/8 and (40 + 10) / 400 = 1/8: equal shares.
    assert erdos_renyi_counts(300, [(10, 40, ()), (40, 10, ())]) == [150, 150]
    # (20 + 20) / 400 = .1 and (4 + 4) / 16 = .5, K = 104: factor * (40 + 8) = 104, so 2.1667 * .5 > 1 caps the second
    # at 16, and the first takes the other 88.
    assert erdos_renyi_counts(104, [(20, 20, ()), (4, 4, ())]) == [88, 16]
    # A 3 x 3 kernel: (10 + 10 + 3 + 3) / (100 * 9) beside (10 + 10) / 100, so weights go as 26 to 20. Of 92 weights
    # 52 and 40: 5.78 kernels and 40 weights. A sixth kernel of 9 weights would exceed the 7 that are left.
    assert erdos_renyi_counts(92, [(10, 10, (3, 3)), (10, 10, ())]) == [5, 40]
    # Of 94: 53.1 and 40.9, so 5.9 kernels, of which the sixth just fits in the 9 weights that are left.
    assert erdos_renyi_counts(94, [(10, 10, (3, 3)), (10, 10, ())]) == [6, 40]
    # Of 138: 78 and 60: 8.67 kernels, of which the ninth does not fit in 6.
    assert erdos_renyi_counts(138, [(10, 10, (3, 3)), (10, 10, ())]) == [8, 60]
    # Equal remainders of .5: the earlier slab has one more.
    assert erdos_renyi_counts(3, [(4, 4, ()), (4, 4, ())]) == [2, 1]


def test_slabs_of_one_shape_share_evenly_up_to_all_of_them():
    for total in range(1, 9 * 60 + 1):
        counts = erdos_renyi_counts(total, [(4, 5, (3, 3))] * 3)
        kernels = total // 9
        assert counts == [kernels // 3 + (slab < kernels % 3) for slab in range(3)]
