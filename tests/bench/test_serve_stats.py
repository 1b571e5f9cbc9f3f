"""The rules of the load test, on vectors one can check by hand."""

import pytest

from llmforge.bench.serve_stats import Sample, knee, little_holds, mean_in_flight, nearest_rank, percentiles, summarise


@pytest.mark.parametrize(
    ("num_values", "permille", "rank"),
    [(10, 500, 5), (10, 900, 9), (10, 990, 10), (11, 500, 6), (1000, 999, 999), (1001, 999, 1000), (1, 500, 1)],
)
def test_a_percentile_is_the_nearest_rank(num_values, permille, rank):
    values = list(range(num_values, 0, -1))  # unsorted on purpose; the value of an element is its rank
    assert nearest_rank(values, permille) == rank


def test_tp999_needs_a_thousand_values():
    assert percentiles(list(range(1, 1000))) == {"tp50": 500, "tp90": 900, "tp99": 990, "max": 999}
    assert percentiles(list(range(1, 1001)))["tp999"] == 999
    assert percentiles([]) == {}


@pytest.mark.parametrize(
    ("steps", "at"),
    [
        ([(1, 10.0), (8, 20.0), (32, 20.9), (104, 20.9)], 8),  # + 4.5 %
        ([(1, 10.0), (8, 20.0), (32, 21.0), (104, 20.0)], 32),  # + 5 %
        ([(104, 30.0), (1, 10.0)], 104),
        ([(1, 10.0), (8, 9.0)], 1),
        ([(8, 9.0)], None),
    ],
)
def test_the_knee_is_the_last_step_that_grew_by_five_percent(steps, at):
    assert knee(steps) == at


def test_two_clients_without_a_pause_have_two_requests_in_flight():
    samples = [Sample(0.0, 2.0), Sample(0.0, 3.0), Sample(2.0, 4.0), Sample(3.0, 5.0)]
    assert mean_in_flight(samples, 3.0) == pytest.approx(2.0)
    assert mean_in_flight(samples, 5.0) == pytest.approx(9 / 5)  # latencies 2 + 3 + 2 + 2: throughput x mean latency
    late = [Sample(0.0, 2.0), Sample(0.0, 2.0), Sample(3.0, 5.0), Sample(3.0, 5.0)]  # a client that dawdles
    assert mean_in_flight(late, 3.0) == pytest.approx(4 / 3)


def test_littles_law_allows_ten_percent():
    assert little_holds(100, 90.0)
    assert not little_holds(100, 89.9)


def test_a_load_is_counted_without_its_failures():
    good = [Sample(0.0, 2.0, first=0.5, num_tokens=20), Sample(0.0, 4.0, first=1.5, num_tokens=10, gaps=[0.1, 0.3])]
    line = summarise([*good, Sample(0.0, 1.0, error="429"), Sample(2.0, 2.5, error="cut")], 2)
    assert line["errors"] == {"429": 1, "cut": 1}
    assert (line["num_requests"], line["num_good"], line["wall_s"]) == (4, 2, 4.0)
    assert (line["req_per_s"], line["tokens_per_s"], line["tokens_per_reply"]) == (0.5, 7.5, 15.0)
    assert line["latencies_s"] == [2.0, 4.0]
    assert line["first_s"] == [0.5, 1.5]
    assert line["gap"]["tp50"] == 0.1
    assert line["refused"]["max"] == 1.0


def test_an_open_loop_counts_latency_from_the_planned_moment():
    assert Sample(due=1.0, end=4.0).latency == 3.0
