"""The benchmark: a table of this device's own times, by which it asks for milliseconds."""

import json
import sys
import tempfile
from dataclasses import replace

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from glyph_tasks import glyph_backbone
from random_weights import random_weights

from client import benchmark as settings
from client.artefacts.runnable import version_of
from client.benchmark import (
    MULTIPLES,
    RATIOS,
    RUNTIMES,
    Runtime,
    benchmark,
    best_multiple,
    counts_at,
    random_network,
)
from client.budget_options import Count, budget_of
from client.cli import cli
from client.latency_table import (
    Device,
    MeasuredTable,
    read_latency_table,
    write_latency_table,
)
from common.budget import Budget, LatencyTable
from common.envelope import seal
from common.errors import BudgetError, InputError, MismatchError
from common.exchange import Offer
from common.mask import Mask
from common.probe import Probe
from common.proto_codec import encode_offer
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
    return MeasuredTable(LatencyTable("ab" * 32, ((10, 1.0), (20, 2.5))), 8, Device.here("torch", 1))


@pytest.fixture
def few_sizes(monkeypatch):
    """Two sizes are measured, and not for long."""
    monkeypatch.setattr(settings, "RATIOS", (0.3, 1.0))
    monkeypatch.setattr(settings, "MULTIPLES", (8,))
    monkeypatch.setattr(settings, "MULTIPLES_AT", (0.3,))
    monkeypatch.setattr(settings, "SECONDS", 0.01)


def test_a_device_measures_itself_and_asks_for_what_it_measured(offer, tmp_path):
    told = []
    runtime = RUNTIMES["torch"]
    measured = benchmark(offer.backbone, offer.structure, 3, runtime, lambda *done: told.append(done))
    assert measured.device.runtime == f"torch {torch.__version__}"
    assert told[-1] == (len(RATIOS) + len(MULTIPLES),) * 2
    assert measured.multiple in MULTIPLES
    points = measured.latency.points
    assert points[-1][0] == offer.structure.flops(classes=3)
    write_latency_table(tmp_path / "table.json", measured)
    given = NOTHING | {"latency_ms": points[-1][1] * 10}
    budget = budget_of(given, read_latency_table(tmp_path / "table.json"))
    assert budget == Budget(latency_ms=points[-1][1] * 10, latency=measured.latency,
                            multiple=measured.multiple)  # fmt: skip
    assert allot(offer.structure, budget, 3) == offer.structure.sizes


def test_no_size_is_measured_twice(offer):
    measured = []

    def milliseconds(network, backbone):
        measured.append(tuple(parameter.shape for parameter in network.parameters()))
        return 1.0

    benchmark(offer.backbone, offer.structure, 3, Runtime(lambda: "none", milliseconds))
    assert len(measured) == len(set(measured)) >= len(RATIOS)


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

    def measured(counts):
        return float(offer.structure.flops([min(n, -(-k // 8) * 8) for k, n in zip(
            counts, offer.structure.sizes, strict=True)], 3))  # fmt: skip

    assert best_multiple(offer.structure, 3, measured) == 8
    assert best_multiple(offer.structure, 3, lambda counts: offer.structure.flops(counts, 3)) == 1


def test_a_table_comes_back_as_it_was_written(table, tmp_path):
    write_latency_table(tmp_path / "t.json", table)
    assert read_latency_table(tmp_path / "t.json") == table


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
        ('{"format": 2}', "its format is 2, read is 1"),
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
    shown = CliRunner().invoke(cli, [*words, "--out", str(tmp_path / "t.json")], catch_exceptions=False)
    assert "Widths are best in multiples of" in shown.stdout


@pytest.fixture
def by_onnx(offer, tmp_path) -> list[str]:
    """The words of a command that measures by onnxruntime."""
    seal(tmp_path / "server.offer", *encode_offer(offer))
    words = ["benchmark", "--offer", tmp_path / "server.offer", "--classes", 3, "--runtime", "onnx"]
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
        offer.structure.flops(counts_at(offer.structure, ratio, 8), 3) for ratio in (0.3, 1.0)
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
