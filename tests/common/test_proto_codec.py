import contextlib
import hashlib
import json
import shutil
import subprocess
import sys
import tracemalloc
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from damaged_bytes import damaged
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from common import proto_codec as codec
from common.backbone import Backbone
from common.budget import Budget
from common.errors import (
    BudgetError,
    InputError,
    MaskError,
    MismatchError,
    SignatureError,
    WeightsError,
)
from common.exchange import (
    MAX_ROUNDS,
    METHODS,
    Assignment,
    Contribution,
    Neighbour,
    Offer,
    Receipt,
    TaskDescription,
)
from common.mask import Mask
from common.signature import MAX_CLASSES, TaskSignature
from common.structure import Group, Structure
from common.structure.cost import Cost
from common.subnetwork import SubNetwork
from protos import maskvote_pb2 as pb

ROOT = Path(__file__).resolve().parents[2]
REQUEST_ID = "0123456789abcdef" * 2
PROBE_DIGEST = hashlib.sha256(b"a probe").hexdigest()
FEATURES = 8
KIB = 1024


@pytest.fixture(scope="module")
def assignment(backbone, structure, weights):
    mask = Mask.of(structure, {g.name: np.arange(g.units) % 3 == 0 for g in structure.groups})
    return Assignment(
        request_id=REQUEST_ID,
        classes=5,
        method="mvp",
        origin="vote",
        mask=mask,
        subnetwork=SubNetwork.of(backbone, weights, mask),
        target=tuple(max(1, count // 2) for count in mask.counts),
        rounds=3,
        neighbours=(Neighbour("5eed", 0.75), Neighbour("f00d", 0.0)),
    )


@pytest.fixture(scope="module")
def contribution(assignment):
    return Contribution(REQUEST_ID, assignment.subnetwork.mask, 0.25, 0.5, iterations=25)


def task_of(classes: int, width: int) -> TaskDescription:
    means = np.random.default_rng(0).normal(size=(classes, width)).astype(np.float16)
    counts = np.full(classes, 100, dtype=np.int32)
    return TaskDescription(REQUEST_ID, TaskSignature(PROBE_DIGEST, means, counts), Budget(keep_ratio=0.1))


def same_network(one: SubNetwork, other: SubNetwork) -> bool:
    return (
        one.backbone == other.backbone
        and one.mask == other.mask
        and one.weights.keys() == other.weights.keys()
        and all(torch.equal(one.weights[name], other.weights[name]) for name in one.weights)
    )


def announced(payload: bytes) -> pb.Payload:
    return pb.Payload(size_bytes=len(payload), sha256=hashlib.sha256(payload).digest())


shapes = st.tuples(st.integers(2, 6), st.integers(1, 8))
halves = st.floats(width=16, allow_nan=False, allow_infinity=False)
signatures = shapes.flatmap(
    lambda shape: st.builds(
        TaskSignature,
        st.binary(min_size=32, max_size=32).map(bytes.hex),
        arrays(np.float16, shape, elements=halves),
        arrays(np.int32, shape[0], elements=st.integers(1, 2**31 - 1)),
    )
)
patience = {"headroom": st.floats(1, 1000), "wait_seconds": st.floats(0, 86_400)}
budgets = st.builds(Budget, keep_ratio=st.floats(0, 1, exclude_min=True), **patience) | st.builds(
    Budget, parameters=st.integers(1, 2**63 - 1), **patience
)
request_ids = st.binary(min_size=16, max_size=16).map(bytes.hex)
shares = st.floats(0, 1)
entries = st.text(max_size=codec.MAX_ENTRY_CHARACTERS)


@st.composite
def masks(draw, structure):
    size = (structure.units + 7) // 8
    bits = np.unpackbits(np.frombuffer(draw(st.binary(min_size=size, max_size=size)), dtype=np.uint8))
    kept = bits[: structure.units].astype(bool)
    kept[list(structure.starts.values())] = True
    return Mask(structure, kept)


# Round trips


@settings(deadline=None)
@given(request_id=request_ids, signature=signatures, budget=budgets, method=st.sampled_from(METHODS))
def test_a_task_description_survives_the_wire(request_id, signature, budget, method):
    task = TaskDescription(request_id, signature, budget, method)
    assert codec.decode_task_description(codec.encode_task_description(task)) == task


@settings(deadline=None)
@given(
    data=st.data(),
    request_id=request_ids,
    before=shares,
    after=shares,
    iterations=st.integers(0, 2**31 - 1),
)
def test_a_contribution_survives_the_wire(structure, data, request_id, before, after, iterations):
    contribution = Contribution(request_id, data.draw(masks(structure)), before, after, iterations)
    assert codec.decode_contribution(codec.encode_contribution(contribution), structure) == contribution


@settings(deadline=None, max_examples=25)
@given(data=st.data(), method=st.sampled_from(METHODS), origin=st.sampled_from(["vote", "importance"]))
def test_an_assignment_survives_the_wire(backbone, structure, weights, data, method, origin):
    mask = data.draw(masks(structure))
    neighbours = data.draw(st.lists(st.builds(Neighbour, entries, shares), max_size=3))
    sent = Assignment(
        data.draw(request_ids),
        data.draw(st.integers(2, MAX_CLASSES)),
        method,
        origin,
        mask,
        tuple(data.draw(st.integers(1, count)) for count in mask.counts),
        data.draw(st.integers(0, MAX_ROUNDS)),
        tuple(neighbours),
        SubNetwork.of(backbone, weights, mask),
    )
    received = codec.decode_assignment(*codec.encode_assignment(sent), structure)
    assert same_network(received.subnetwork, sent.subnetwork)
    for field in ("request_id", "classes", "method", "origin", "target", "rounds", "neighbours"):
        assert getattr(received, field) == getattr(sent, field), field


def test_an_offer_survives_the_wire(offer):
    received = codec.decode_offer(*codec.encode_offer(offer))
    assert received.backbone == offer.backbone
    assert received.structure.to_json() == offer.structure.to_json()
    assert received.probe.digest == offer.probe.digest
    assert np.array_equal(received.probe.center, offer.probe.center)
    assert same_network(received.probe.subnetwork, offer.probe.subnetwork)


@given(entry=entries, count=st.integers(0, 2**64 - 1))
def test_a_receipt_survives_the_wire(entry, count):
    assert codec.decode_receipt(codec.encode_receipt(Receipt(entry, count))) == Receipt(entry, count)


# What the .proto promises to other languages


def test_the_first_unit_is_the_highest_bit_and_no_gap_is_between_groups():
    free = Cost((), ())
    groups = (Group("a:0", 3, "internal", True, ()), Group("b:0", 6, "internal", True, ()))
    structure = Structure({}, groups, 2, free, free, free)
    kept = np.array([1, 0, 0, 0, 1, 1, 0, 0, 1], dtype=bool)
    message = codec.encode_contribution(Contribution(REQUEST_ID, Mask(structure, kept), 0, 0, 0))
    mask = pb.Contribution.FromString(message).mask
    assert mask.kept == bytes([0b10001100, 0b10000000])
    assert mask.structure_digest.hex() == structure.digest


def test_means_are_little_endian_halves_row_after_row():
    means = np.asfortranarray([[1, 2, 0.5], [-1, 0, 65504]], dtype=np.float16)
    signature = TaskSignature(PROBE_DIGEST, means, np.array([3, 7], dtype=np.int32))
    task = TaskDescription(REQUEST_ID, signature, Budget(keep_ratio=0.5))
    sent = pb.TaskDescription.FromString(codec.encode_task_description(task)).signature
    assert sent.means.hex(" ", 2) == "003c 0040 0038 00bc 0000 ff7b"
    assert (sent.width, list(sent.counts)) == (3, [3, 7])


def test_the_structures_digest_is_the_hash_that_the_proto_file_describes(structure):
    data = json.loads(structure.to_json())
    text = json.dumps([data[key] for key in ("format", "model", "groups", "patterns")], sort_keys=True)
    assert hashlib.sha256(text.encode()).hexdigest() == structure.digest


@pytest.mark.parametrize(("model", "width"), [("resnet18", 512), ("vit_tiny_patch16_224", 192)])
def test_a_device_sends_at_most_20_kilobytes_for_ten_classes(model, width):
    structure = Backbone.from_timm(model).structure()
    contribution = Contribution(REQUEST_ID, Mask.full(structure), 0.5, 0.5, 50)
    sent = [codec.encode_task_description(task_of(10, width)), codec.encode_contribution(contribution)]
    assert sum(map(len, sent)) <= 20_000


def test_the_largest_signature_of_2048_features_fits_a_message():
    task = task_of(1000, 2048)
    assert codec.decode_task_description(codec.encode_task_description(task)) == task


# What is refused


def put(path: str, value):
    """A change to a message: sets the field at a dotted path."""

    def change(message):
        *parents, field = path.split(".")
        for parent in parents:
            message = getattr(message, parent)
        if isinstance(value, list):
            del getattr(message, field)[:]
            getattr(message, field).extend(value)
        else:
            setattr(message, field, value)

    return change


def cleared(field: str):
    return lambda message: message.ClearField(field)


NAN, INFINITY = float("nan"), float("inf")


@pytest.mark.parametrize(
    ("change", "error", "says"),
    [
        (put("request_id", b"short"), InputError, "5 bytes; it has 16"),
        (put("method", 0), InputError, "no method 0"),
        (put("method", 9), InputError, "no method 9"),
        (put("signature.probe_digest", b""), InputError, "0 bytes; it has 32"),
        (put("signature.width", 4), SignatureError, "4 wide"),
        (put("signature.width", 0), SignatureError, "0 wide"),
        (put("signature.width", codec.MAX_WIDTH + 1), SignatureError, "16385 wide"),
        (put("signature.counts", [1] * 1001), SignatureError, "1001 classes"),
        (put("signature.counts", [1, 1]), SignatureError, "2 classes"),
        (put("signature.counts", [1, -1, 1]), SignatureError, "-1 images"),
        (put("signature.means", b"\xff" * 48), SignatureError, "NaN"),
        (put("signature.means", b"\x00" * 47), SignatureError, "47 bytes"),
        (cleared("signature"), SignatureError, "0 classes"),
        (cleared("budget"), BudgetError, "at least one"),
        (put("budget.flops", 0), BudgetError, "0 floating-point operations"),
        (put("budget.weight_bytes", 2**63), BudgetError, "bytes of weights"),
        (put("budget.latency_ms", 5.0), BudgetError, "benchmark"),
        (put("budget.latency_ms", NAN), BudgetError, "nan ms"),
        (put("budget.multiple", 1025), BudgetError, "multiples of 1025"),
        (put("budget.latency.flops", [1]), InputError, "1 sizes and 0 times"),
        (put("budget.keep_ratio", NAN), BudgetError, "nan"),
        (put("budget.keep_ratio", 0.0), BudgetError, "0.0"),
        (put("budget.parameters", 0), BudgetError, "0 parameters"),
        (put("budget.headroom", NAN), BudgetError, "nan"),
        (put("budget.headroom", INFINITY), BudgetError, "inf"),
        (put("budget.headroom", 0.0), BudgetError, "0.0"),
        (put("budget.wait_seconds", NAN), BudgetError, "nan"),
        (put("budget.wait_seconds", -1.0), BudgetError, "the wait is -1.0 seconds"),
    ],
)
def test_a_task_description_that_breaks_a_rule_is_refused(change, error, says):
    message = pb.TaskDescription.FromString(codec.encode_task_description(task_of(3, FEATURES)))
    change(message)
    with pytest.raises(error, match=says):
        codec.decode_task_description(message.SerializeToString())


@pytest.mark.parametrize(
    ("change", "error", "says"),
    [
        (put("request_id", b"\x00" * 17), InputError, "17 bytes; it has 16"),
        (put("mask.kept", b"\xff"), MaskError, "1 bytes"),
        (put("mask.kept", b"\x00" * 38), MaskError, "keeps no unit"),
        (put("mask.structure_digest", b""), MismatchError, "fetch the offer"),
        (put("accuracy_before", NAN), InputError, "accuracy_before is nan"),
        (put("accuracy_after", 1.5), InputError, "accuracy_after is 1.5"),
        (put("iterations", 2**31), InputError, "2147483648 iterations"),
    ],
)
def test_a_contribution_that_breaks_a_rule_is_refused(contribution, structure, change, error, says):
    message = pb.Contribution.FromString(codec.encode_contribution(contribution))
    change(message)
    with pytest.raises(error, match=says):
        codec.decode_contribution(message.SerializeToString(), structure)


@pytest.mark.parametrize(
    ("change", "error", "says"),
    [
        (put("origin", 7), InputError, "no origin 7"),
        (put("rounds", 1001), InputError, "1001 rounds"),
        (put("target", [1]), InputError, "the target keeps"),
        (put("target", [1000] * 7), InputError, "the target keeps"),
        (put("mask.kept", b"\xff" * 38), MismatchError, "differ in 201 units"),
        (put("subnetwork.sha256", b""), WeightsError, "fetch it again"),
        (put("subnetwork.size_bytes", 2**32), InputError, "4294967296 bytes"),
        (lambda message: message.neighbours.add(similarity=NAN), InputError, "similarity is nan"),
        (lambda message: message.neighbours.add(entry="x" * 201), InputError, "201 characters"),
    ],
)
def test_an_assignment_that_breaks_a_rule_is_refused(assignment, structure, change, error, says):
    encoded, payload = codec.encode_assignment(assignment)
    message = pb.Assignment.FromString(encoded)
    change(message)
    with pytest.raises(error, match=says):
        codec.decode_assignment(message.SerializeToString(), payload, structure)


def test_a_mask_of_another_structure_is_refused_with_both_digests(contribution, structure):
    other = structure.without({structure.groups[0].name: "a test"})
    with pytest.raises(MismatchError, match=rf"{structure.digest[:12]}.*{other.digest[:12]}"):
        codec.decode_contribution(codec.encode_contribution(contribution), other)


def test_a_payload_cut_short_or_with_one_bit_flipped_is_refused(assignment, offer, structure):
    message, payload = codec.encode_assignment(assignment)
    offered, probe = codec.encode_offer(offer)
    for whole, decode in [
        (payload, lambda damaged: codec.decode_assignment(message, damaged, structure)),
        (probe, lambda damaged: codec.decode_offer(offered, damaged)),
    ]:
        flipped = bytearray(whole)
        flipped[-1] ^= 1
        for broken in (whole[:-1], bytes(flipped), b""):
            with pytest.raises(WeightsError, match="fetch it again"):
                decode(broken)


def test_a_network_of_another_model_is_refused(assignment, structure):
    message, payload = codec.encode_assignment(assignment)
    parsed = pb.Assignment.FromString(message)
    forged = bytes(payload).replace(b'\\"model\\": \\"test_resnet\\"', b'\\"model\\": \\"seresnet18\\" ')
    parsed.subnetwork.CopyFrom(announced(forged))
    with pytest.raises(MismatchError, match="seresnet18"):
        codec.decode_assignment(parsed.SerializeToString(), forged, structure)


def test_a_probe_of_another_backbone_is_not_offered(offer):
    other = Backbone.from_timm("test_resnet", num_classes=7, image_size=32)
    with pytest.raises(MismatchError, match="cut it anew"):
        codec.encode_offer(Offer(other, offer.structure, offer.probe))


def test_a_message_over_the_limit_is_refused_unread():
    with pytest.raises(InputError, match="4194305 bytes"):
        codec.decode_receipt(b"\x00" * (codec.MAX_MESSAGE_BYTES + 1))
    with pytest.raises(InputError, match="at most 4194304"):
        codec.encode_task_description(task_of(1000, 4096))


@pytest.mark.parametrize("claimed_bytes", [0, 1, 64 * KIB])
def test_a_structure_never_decompresses_past_its_announced_size(offer, claimed_bytes):
    bomb = zlib.compress(b"[" * 64 * KIB * KIB)
    structure = pb.Structure(digest=b"\x00" * 32, json_size_bytes=claimed_bytes, json_zlib=bomb)
    message = pb.Offer(structure=structure).SerializeToString()
    tracemalloc.start()
    try:
        with pytest.raises(InputError, match="announced"):
            codec.decode_offer(message, b"")
        assert tracemalloc.get_traced_memory()[1] < 2 * claimed_bytes + 4 * len(bomb)
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (b"[" * 200_000, "RecursionError"),
        (b'{"\xff": 1}', "Unicode"),
        (b"7", "TypeError"),
        (b'{"format":2,"patterns":[[1e999]]}', "OverflowError"),
        (b'{"format":2,"patterns":[[99999999999999999999]]}', "OverflowError"),
    ],
)
def test_a_structure_that_is_none_is_refused(text, says):
    structure = pb.Structure(json_size_bytes=len(text), json_zlib=zlib.compress(text))
    with pytest.raises(InputError, match=says):
        codec.decode_offer(pb.Offer(structure=structure).SerializeToString(), b"")


@pytest.mark.parametrize(
    "damage", [lambda z: z[:-1], lambda z: z + b"x", lambda z: b"x" + z, lambda z: b""]
)
def test_a_structure_whose_stream_is_damaged_is_refused(offer, damage):
    message, payload = codec.encode_offer(offer)
    parsed = pb.Offer.FromString(message)
    parsed.structure.json_zlib = damage(parsed.structure.json_zlib)
    with pytest.raises(InputError, match=r"fetch the offer again|have it sent again"):
        codec.decode_offer(parsed.SerializeToString(), payload)


def test_a_structure_announced_larger_than_the_limit_is_refused():
    structure = pb.Structure(json_size_bytes=codec.MAX_STRUCTURE_BYTES + 1)
    with pytest.raises(InputError, match="4194305 bytes of structure"):
        codec.decode_offer(pb.Offer(structure=structure).SerializeToString(), b"")


# Fuzz: any bytes at all give a valid object or a MaskvoteError

oddities: st.SearchStrategy = st.sampled_from(
    [None, True, -1, 2**40, 10**30, 1e300, INFINITY, NAN, "", "x", [], [[]], {}, {"x": []}, [None]]
)


@st.composite
def altered(draw, valid):
    """A JSON value with one value somewhere in it replaced."""
    value = json.loads(json.dumps(valid))
    inside = value
    while True:
        keys = list(inside) if isinstance(inside, dict) else list(range(len(inside)))
        key = draw(st.sampled_from(keys))
        if not isinstance(inside[key], (dict, list)) or not inside[key] or draw(st.integers(0, 3)) == 0:
            inside[key] = draw(oddities)
            return value
        inside = inside[key]


def accepts_or_refuses(decode, *arguments) -> None:
    with contextlib.suppress(InputError, MismatchError):
        decode(*arguments)


fuzzed = settings(deadline=None, max_examples=75, derandomize=True)


@fuzzed
@given(data=st.data())
def test_damaged_messages_raise_nothing_but_our_errors(data, offer, assignment, contribution, structure):
    offered, probe = codec.encode_offer(offer)
    assigned, network = codec.encode_assignment(assignment)
    described = codec.encode_task_description(task_of(3, FEATURES))
    contributed = codec.encode_contribution(contribution)
    stored = codec.encode_receipt(Receipt("5eed", 3))
    accepts_or_refuses(codec.decode_offer, data.draw(damaged(offered)), probe)
    accepts_or_refuses(codec.decode_assignment, data.draw(damaged(assigned)), network, structure)
    accepts_or_refuses(codec.decode_task_description, data.draw(damaged(described)))
    accepts_or_refuses(codec.decode_contribution, data.draw(damaged(contributed)), structure)
    accepts_or_refuses(codec.decode_receipt, data.draw(damaged(stored)))


@fuzzed
@given(data=st.data())
def test_damaged_networks_announced_as_they_are_raise_nothing_but_our_errors(data, assignment, structure):
    message, payload = codec.encode_assignment(assignment)
    length = int.from_bytes(payload[:8], "little")
    header, tensors = bytes(payload[8 : 8 + length]), bytes(payload[8 + length :])
    if data.draw(st.booleans()):
        header = json.dumps(data.draw(altered(json.loads(header)))).encode()
    else:
        header = data.draw(damaged(header))
    forged = len(header).to_bytes(8, "little") + header + tensors
    parsed = pb.Assignment.FromString(message)
    parsed.subnetwork.CopyFrom(announced(forged))
    accepts_or_refuses(codec.decode_assignment, parsed.SerializeToString(), forged, structure)


@fuzzed
@given(data=st.data())
def test_damaged_structures_announced_as_they_are_raise_nothing_but_our_errors(data, offer):
    message, payload = codec.encode_offer(offer)
    parsed = pb.Offer.FromString(message)
    text = json.dumps(data.draw(altered(json.loads(offer.structure.to_json())))).encode()
    parsed.structure.json_size_bytes = len(text)
    parsed.structure.json_zlib = zlib.compress(text)
    try:
        parsed.structure.digest = bytes.fromhex(Structure.from_json(text).digest)
    except Exception:
        parsed.structure.digest = b"\x00" * 32  # no structure, so no digest to forge
    accepts_or_refuses(codec.decode_offer, parsed.SerializeToString(), payload)


# Generated code


def check_generated_code(root: Path) -> subprocess.CompletedProcess:
    script = [sys.executable, str(root / "scripts" / "protos"), "--check"]
    return subprocess.run(script, capture_output=True, text=True, timeout=60)


def test_the_generated_code_is_what_the_proto_file_gives():
    checked = check_generated_code(ROOT)
    assert checked.returncode == 0, checked.stderr


def test_generated_code_that_was_edited_is_noticed(tmp_path):
    for folder in ("protos", "scripts"):
        shutil.copytree(ROOT / folder, tmp_path / folder)
    with (tmp_path / "protos" / "maskvote_pb2.pyi").open("a") as file:
        file.write("# edited\n")
    checked = check_generated_code(tmp_path)
    assert checked.returncode != 0
    assert "maskvote_pb2.pyi" in checked.stderr
    assert "maskvote_pb2.py:" not in checked.stderr


def test_the_generated_code_runs_on_the_oldest_protobuf_that_is_allowed():
    source = (ROOT / "protos" / "maskvote_pb2.py").read_text()
    assert "# Protobuf Python Version: 5.29.0" in source
    assert '"protobuf>=5.29' in (ROOT / "pyproject.toml").read_text()
    assert pb.DESCRIPTOR.package == "maskvote.v1"
