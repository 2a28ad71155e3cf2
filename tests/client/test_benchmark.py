"""The benchmark: a table of this device's own times, by which it asks for milliseconds."""

import json
import sys
import tempfile
import time
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from glyph_tasks import glyph_backbone
from hypothesis import given
from hypothesis import strategies as st
from random_weights import random_weights

from client import benchmark as settings
from client.artefacts.runnable import version_of
from client.benchmark import (
    MULTIPLES,
    ROUNDS,
    RUNTIMES,
    SIZES,
    Runtime,
    Size,
    benchmark,
    best_multiple,
    counts_at,
    in_rounds,
    random_network,
    rising,
    sizes_of,
)
from client.benchmark_cli import _unrest
from client.budget_options import Count, budget_of
from client.cli import cli
from client.latency_table import (
    Device,
    MeasuredTable,
    read_latency_table,
    write_latency_table,
)
from common.backbone import Backbone
from common.budget import Budget, LatencyTable
from common.envelope import seal
from common.errors import BudgetError, InputError, MismatchError
from common.exchange import Offer
from common.mask import Mask
from common.probe import Probe
from common.proto_codec import encode_offer
from common.signature import MAX_CLASSES
from common.subnetwork import SubNetwork
from server.budget import allot

NOTHING = {
    "keep_ratio": None, "parameters": None, "flops": None, "weight_bytes": None,
    "activation_bytes": None, "latency_ms": None, "latency_table": None, "multiple": None,
    "headroom": 1.0, "wait": 0.0,
}  # fmt: skip


@pytest.fixture(scope="module")
def offer() -> Offer:
    backbone = glyph_backbone()
    structure = backbone.structure()
    network = SubNetwork.of(backbone, random_weights(backbone), Mask.full(structure))
    width = network.network(1).get_submodule(backbone.classifier).in_features
    return Offer(backbone, structure, Probe(network, np.zeros(width, dtype=np.float32)))


@pytest.fixture
def table() -> MeasuredTable:
    latency = LatencyTable("ab" * 32, ((10, 1.0), (20, 2.5)))
    return MeasuredTable(latency, 8, Device.here("torch", 1), ((1.5, 1.0), (2.5, 3.0)))


@pytest.fixture
def few_sizes(monkeypatch):
    """The smallest network, and the whole for few and many classes, are measured, and not for long."""
    monkeypatch.setattr(settings, "SIZES", 2)
    monkeypatch.setattr(settings, "MULTIPLES", (8,))
    monkeypatch.setattr(settings, "MULTIPLES_AT", (0.3,))
    monkeypatch.setattr(settings, "ROUNDS", 2)
    monkeypatch.setattr(settings, "SECONDS", 0.01)


def test_a_device_measures_itself_and_asks_for_what_it_measured(offer, tmp_path, monkeypatch):
    monkeypatch.setattr(settings, "SECONDS", 0.002)
    told = []
    runtime = RUNTIMES["torch"]
    measured = benchmark(offer.backbone, offer.structure, 3, runtime, lambda *done: told.append(done))
    assert measured.device.runtime == f"torch {torch.__version__}"
    assert [done for done, _ in told] == list(range(1, len(told) + 1))
    assert told[-1] == (len(told), len(told))
    assert measured.multiple in MULTIPLES
    points = measured.latency.points
    assert points[0][0] == offer.structure.flops(offer.structure.smallest, 3)
    assert points[-2][0] == offer.structure.flops(classes=3)
    assert points[-1][0] == offer.structure.flops(classes=MAX_CLASSES)
    assert all(low <= high for (_, low), (_, high) in pairwise(points))
    assert [len(rounds) for rounds in measured.rounds] == len(points) * [ROUNDS]
    write_latency_table(tmp_path / "table.json", measured)
    given = NOTHING | {"latency_ms": points[-1][1] * 10}
    budget = budget_of(given, read_latency_table(tmp_path / "table.json"))
    assert budget == Budget(latency_ms=points[-1][1] * 10, latency=measured.latency,
                            multiple=measured.multiple)  # fmt: skip
    assert allot(offer.structure, budget, 3) == offer.structure.sizes
    # The smallest network that a server would send can be asked for, and nothing faster.
    least = budget_of(NOTHING | {"latency_ms": points[0][1]}, measured)
    assert allot(offer.structure, least, 3)
    with pytest.raises(BudgetError, match="smallest network that was measured"):
        budget_of(NOTHING | {"latency_ms": 0.99 * points[0][1]}, measured)


@pytest.mark.parametrize("residual", [False, True])
@pytest.mark.parametrize("multiple", MULTIPLES)
def test_sizes_go_evenly_from_the_smallest_network_to_the_whole(multiple, residual):
    structure = Backbone.from_timm("resnet18", image_size=64).structure(("internal", "residual"))
    structure = structure if residual else structure.only(("internal",))
    sizes = sizes_of(structure, 10, multiple)
    flops = [structure.flops(size.counts, size.classes) for size in sizes]
    assert sizes[0] == Size(structure.smallest, 10)
    assert sizes[-2:] == [Size(structure.sizes, 10), Size(structure.sizes, MAX_CLASSES)]
    assert SIZES - 2 <= len(sizes) <= SIZES + 1
    steps = np.array([high / low for low, high in pairwise(flops)])
    even = (flops[-2] / flops[0]) ** (1 / (SIZES - 1))
    assert (steps > 1).all()
    assert (steps < even**2.1).all()


def test_all_runs_take_turns_and_each_round_is_kept(monkeypatch):
    """One run is slow in one round: the others are not, and its own least is not either."""
    monkeypatch.setattr(settings, "ROUNDS", 3)
    monkeypatch.setattr(settings, "RUNS", 1)
    monkeypatch.setattr(settings, "SECONDS", 0)
    order = []

    def run(name):
        def run():
            order.append(name)
            time.sleep(0.05 if (name, order.count(name)) == ("b", 2) else 0.001)

        return run

    times = in_rounds([run("a"), run("b"), run("c")])
    assert "".join(order) == "abccbaabc"
    assert [len(rounds) for rounds in times] == [3, 3, 3]
    assert times[1][1] > 50 > 2 * min(times[1])


@pytest.mark.parametrize(
    ("measured", "counted"),
    [
        ((1.0, 2.0, 2.0, 3.0), (1.0, 2.0, 2.0, 3.0)),
        # The second was disturbed: it is not slower than the third, which is larger.
        ((1.0, 4.0, 2.0, 5.0), (1.0, 2.0, 2.0, 5.0)),
        ((3.0, 4.0, 1.0), (1.0, 1.0, 1.0)),
        ((28.7, 28.6, 10.9), (10.9, 10.9, 10.9)),
        ((5.0,), (5.0,)),
    ],
)
def test_no_network_counts_as_slower_than_a_larger_one(measured, counted):
    assert rising(measured) == counted


@given(st.lists(st.floats(0.01, 100), min_size=1, max_size=12), st.lists(st.floats(0, 9), min_size=12))
def test_what_other_work_adds_is_taken_off_as_far_as_a_larger_network_shows_it(times, added):
    """Whatever is added, the curve lies between what is true and what was measured, and rises."""
    true = sorted(times)
    measured = [time + more for time, more in zip(true, added, strict=False)]
    counted = rising(measured)
    assert list(counted) == sorted(counted)
    assert all(low <= it <= high for low, it, high in zip(true, counted, measured, strict=True))


def test_the_table_holds_the_least_of_the_rounds_made_to_rise(offer, few_sizes, monkeypatch):
    rounds = [(4.0, 5.0), (3.0, 2.0), (6.0, 7.0)]
    monkeypatch.setattr(settings, "in_rounds", lambda runs, tick: rounds[: len(runs)])
    table = benchmark(offer.backbone, offer.structure, 3, RUNTIMES["torch"])
    assert [time for _, time in table.latency.points] == [2.0, 2.0, 6.0]
    assert table.rounds == tuple(rounds)


def test_no_size_is_made_ready_twice(offer, monkeypatch):
    monkeypatch.setattr(settings, "SECONDS", 0)
    made = []

    def ready(network, backbone):
        made.append(tuple(parameter.shape for parameter in network.parameters()))
        return lambda: None

    sizes = sizes_of(offer.structure, 3, 8)
    assert len(set(sizes)) == len(sizes)
    benchmark(offer.backbone, offer.structure, 3, Runtime(lambda: "none", ready))
    assert len(made[-len(sizes) :]) == len(set(made[-len(sizes) :]))


def test_random_networks_have_the_units_asked_for_and_run(offer):
    counts = counts_at(offer.structure, 0.3, 4)
    network = random_network(offer.backbone, offer.structure, counts, 3)
    assert sum(p.numel() for p in network.parameters()) == offer.structure.parameters(counts, 3)
    with torch.inference_mode():
        assert network(torch.zeros(2, *offer.backbone.input_size)).isfinite().all()
    # As they are read of a file: of other memory formats the exporter makes other graphs.
    assert all(parameter.is_contiguous() for parameter in network.parameters())


def test_the_smallest_multiple_about_as_good_as_the_best_is_taken(offer):
    """A device to which channels cost what the next multiple of eight would."""

    def in_eights(size):
        counts = zip(size.counts, offer.structure.sizes, strict=True)
        return float(offer.structure.flops([min(n, -(-k // 8) * 8) for k, n in counts], 3))

    def exactly(size):
        return float(offer.structure.flops(size.counts, 3))

    for time_of, best in ((in_eights, 8), (exactly, 1)):
        # The second of two rounds is slow, and the least of them counts.
        measured = [lambda sizes, time_of=time_of: [(time_of(size), 1e12) for size in sizes]]
        assert best_multiple(offer.structure, 3, measured[0]) == best


def test_a_table_comes_back_as_it_was_written(table, tmp_path):
    write_latency_table(tmp_path / "t.json", table)
    assert read_latency_table(tmp_path / "t.json") == table


def test_a_table_of_an_earlier_version_is_read_as_it_is(table, tmp_path):
    """Its sizes were measured once each: there are no rounds in it."""
    write_latency_table(tmp_path / "t.json", table)
    written = json.loads((tmp_path / "t.json").read_text())
    assert written.pop("rounds") == [list(rounds) for rounds in table.rounds]
    (tmp_path / "t.json").write_text(json.dumps(written | {"format": 1}))
    assert read_latency_table(tmp_path / "t.json") == replace(table, rounds=())


def test_a_table_of_another_device_is_refused_by_name(table, tmp_path):
    other = replace(table, device=replace(table.device, processor="Raspberry Pi 4 Model B Rev 1.4"))
    write_latency_table(tmp_path / "t.json", other)
    with pytest.raises(MismatchError, match="another device, Raspberry Pi 4 Model B"):
        read_latency_table(tmp_path / "t.json")


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("", "no latency table"),
        ("[]", "no latency table"),
        ('{"format": 3}', "its format is 3, .* reads 1 and 2; measure it anew"),
        ('{"format": 1}', "it has no 'structure'"),
        (
            '{"format": 1, "structure": "ab", "points": [], "multiple": 1, "device": {}}',
            "no latency table",
        ),
    ],
)
def test_what_is_no_table_is_refused(content, says, tmp_path):
    (tmp_path / "t.json").write_text(content)
    with pytest.raises(InputError, match=says):
        read_latency_table(tmp_path / "t.json")


def test_a_table_alone_is_no_budget_and_milliseconds_need_one(table):
    with pytest.raises(BudgetError, match="at least one"):
        budget_of(NOTHING, table)
    assert budget_of(NOTHING | {"flops": 5}, table).multiple == 8
    assert budget_of(NOTHING | {"flops": 5, "multiple": 2}, None).multiple == 2
    with pytest.raises(BudgetError, match="maskvote-client benchmark"):
        budget_of(NOTHING | {"latency_ms": 5.0}, None)


@pytest.mark.parametrize(
    ("said", "number"),
    [("1500000", 1_500_000), ("1.5M", 1_500_000), ("800k", 800_000), ("2G", 2 * 10**9), ("-1", -1)],
)
def test_counts_are_said_as_people_say_them(said, number):
    assert Count().convert(said, None, None) == number


@pytest.mark.parametrize("said", ["1.5", "5MB", "many", "", "1e6", "nan"])
def test_what_is_no_count_is_told(said):
    result = CliRunner().invoke(cli, ["adapt", "--data", "x", "--parameters", said])
    assert result.exit_code == 2
    assert "give 1500000, 1.5M" in result.output


def test_the_command_writes_what_adapt_takes(offer, few_sizes, tmp_path):
    seal(tmp_path / "server.offer", *encode_offer(offer))
    words = ["benchmark", "--offer", str(tmp_path / "server.offer"), "--classes", "3"]
    result = CliRunner().invoke(
        cli, [*words, "--out", str(tmp_path / "t.json"), "--json"], catch_exceptions=False
    )
    told = json.loads(result.stdout)
    table = read_latency_table(tmp_path / "t.json")
    assert [tuple(point) for point in told["points"]] == list(table.latency.points)
    assert told["structure"] == offer.structure.digest
    assert tuple(map(tuple, told["rounds"])) == table.rounds
    shown = CliRunner().invoke(cli, [*words, "--out", str(tmp_path / "t.json")], catch_exceptions=False)
    assert "Widths are best in multiples of" in shown.stdout
    rounds = read_latency_table(tmp_path / "t.json").rounds
    assert f"{min(rounds[0]):.3g} to {max(rounds[0]):.3g}" in shown.stdout


def test_rounds_that_differ_much_are_told(table):
    assert _unrest(table) == ""
    restless = replace(table, rounds=((1.0, 1.4, 1.5), (2.5, 5.0, 6.0)))
    assert "up to 2.0 times" in _unrest(restless)


@pytest.fixture
def by_onnx(offer, tmp_path) -> list[str]:
    """The words of a command that measures by onnxruntime."""
    seal(tmp_path / "server.offer", *encode_offer(offer))
    words = [
        "benchmark",
        "--offer",
        tmp_path / "server.offer",
        "--classes",
        MAX_CLASSES,
        "--runtime",
        "onnx",
    ]
    return [*map(str, words), "--out", str(tmp_path / "t.json")]


def test_a_device_measures_what_it_exports_by_onnxruntime(
    client, by_onnx, offer, few_sizes, tmp_path, monkeypatch
):
    passing = tmp_path / "passing"
    passing.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(passing))
    status, out, _ = client(*by_onnx, "--json")
    assert status == 0
    assert json.loads(out)["device"]["runtime"] == version_of("onnxruntime")
    table = read_latency_table(tmp_path / "t.json")
    assert table.device == Device.here(version_of("onnxruntime"), torch.get_num_threads())
    assert [flops for flops, _ in table.latency.points] == [
        offer.structure.flops(counts, MAX_CLASSES)
        for counts in (offer.structure.smallest, offer.structure.sizes)
    ]
    assert all(time > 0 for _, time in table.latency.points)
    assert list(passing.iterdir()) == []


def test_without_onnxruntime_a_sentence_tells_what_to_install(client, by_onnx, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    status, out, told = client(*by_onnx)
    assert (status, out) == (2, "")
    assert told.endswith('pip install "maskvote[onnx]"')
    assert told.count("onnxruntime") == 2
    assert not (tmp_path / "t.json").exists()
