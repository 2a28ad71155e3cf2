"""Private requests: what a device is told of the guarantee, and that noise is drawn once a request."""

import json
import re
from collections import Counter

import numpy as np
import pytest
from drawn_images import draw_images
from grpc_server import running_server

from client.disclosure import guarantee_of, warning_of
from common.budget import Budget
from common.envelope import seal, unseal
from common.exchange import TaskDescription
from common.privacy import Privacy
from common.probe import Probe
from common.proto_codec import decode_task_description, encode_offer
from common.signature import TaskSignature, is_private


@pytest.fixture
def offer_file(offer, tmp_path):
    seal(tmp_path / "server.offer", *encode_offer(offer))
    return tmp_path / "server.offer"


@pytest.fixture
def describing(monkeypatch) -> Counter:
    """How often a task was described, by the guarantee that was asked for."""
    seen: Counter = Counter()
    describe = Probe.describe

    def counted(self, images, classes, privacy=None, noise=None, **options):
        seen[privacy] += 1
        return describe(self, images, classes, privacy, noise, **options)

    monkeypatch.setattr(Probe, "describe", counted)
    return seen


def description(counts: list[int]) -> TaskDescription:
    means = np.zeros((len(counts), 96), np.float16)
    signature = TaskSignature("0" * 64, means, np.array(counts, np.int32))
    return TaskDescription("0" * 32, signature, Budget(keep_ratio=0.5), "smsp")


def test_by_files_a_request_says_what_it_guarantees_and_each_is_noised_anew(
    client, images, offer, offer_file, tmp_path
):
    words = ["describe", "--offer", offer_file, "--data", images, "--keep-ratio", 0.5]
    status, told, _ = client(*words, "--epsilon", 4, "--out", "one.request")
    assert status == 0
    for expected in ("epsilon 4, delta 1e-05", "one image added or removed", "spends as much again",
                     "not covered", "with noise", "Noise drowns 3 of the 3 classes"):  # fmt: skip
        assert expected in " ".join(told.split())
    _, shown, _ = client(*words, "--epsilon", 4, "--delta", 1e-6, "--json", "--out", "other.request")
    facts = json.loads(shown)
    assert facts["privacy"] == {"epsilon": 4, "delta": 1e-6}
    assert facts["warning"].startswith("Noise drowns")
    one, other = (
        decode_task_description(unseal(tmp_path / f"{name}.request")[0]).signature
        for name in ("one", "other")
    )
    assert is_private(one, offer.probe.center)
    assert is_private(other, offer.probe.center)
    assert not (one.means == other.means).all(axis=1).any()


def test_a_request_without_epsilon_is_the_same_as_ever_and_says_that_nothing_is_guaranteed(
    client, images, offer, offer_file, task
):
    words = ["describe", "--offer", offer_file, "--data", images, "--keep-ratio", 0.5]
    status, told, _ = client(*words, "--out", "my.request")
    assert (status, "nothing is guaranteed" in told, "with noise" in told) == (0, True, False)
    facts = json.loads(client(*words, "--json")[1])
    assert (facts["privacy"], facts["warning"]) == (None, None)
    signature = decode_task_description(unseal("my.request")[0]).signature
    assert signature == offer.probe.describe(task.train, len(task.classes))


def test_what_is_described_privately_is_sent_as_it_was_and_noise_is_drawn_once(
    client, library, weights, images, describing
):
    with running_server(library, weights) as port:
        common = ["--server", f"127.0.0.1:{port}", "--state", "state", "--data", images,
                  "--keep-ratio", 0.3, "--patience", 0, "--epsilon", 8]  # fmt: skip
        first = json.loads(client("describe", *common, "--json")[1])
        assert json.loads(client("describe", *common, "--json")[1]) == first
        assert client("adapt", *common, "--iterations", 2)[0] == 0
        assert client("adapt", *common, "--iterations", 2)[0] == 0
    assert describing == {Privacy(8): 1}
    stored = library.assignment_of(first["request"]).description.signature
    assert is_private(stored, library.offer.probe.center)
    assert first["privacy"] == {"epsilon": 8, "delta": 1e-5}


@pytest.mark.parametrize(
    ("before", "after"),
    [([], ["--epsilon", 8]), (["--epsilon", 8], []), (["--epsilon", 8], ["--epsilon", 4])],
)
def test_a_request_that_is_kept_is_not_taken_for_one_of_another_guarantee(
    client, library, weights, images, before, after
):
    with running_server(library, weights) as port:
        common = ["--server", f"127.0.0.1:{port}", "--state", "state", "--data", images,
                  "--keep-ratio", 0.3, "--patience", 0]  # fmt: skip
        assert client("describe", *common, *before)[0] == 0
        for command in ("describe", "adapt"):
            status, _, told = client(command, *common, *after)
            assert status == 2
            assert re.search("was begun with (no privacy|privacy epsilon 8, delta 1e-05), now ", told)
    assert library.statistics().unanswered == 0


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--epsilon", 0], "epsilon is 0.0; it is from 0.001"),
        (["--epsilon", -1], "epsilon is -1.0"),
        (["--epsilon", "nan"], "epsilon is nan"),
        (["--epsilon", "inf"], "epsilon is inf"),
        (["--epsilon", 1e6], "leave it out for no noise"),
        (["--epsilon", 8, "--delta", 0], "delta is 0.0; it is a probability"),
        (["--epsilon", 8, "--delta", 1], "delta is 1.0"),
        (["--delta", 1e-5], "there is no --epsilon"),
        (["--epsilon", "eight"], "not a valid float"),
    ],
)
def test_what_guarantees_nothing_is_refused_before_anybody_is_asked(
    client, images, offer_file, describing, words, says
):
    through = ["--server", "127.0.0.1:1", "--state", "state", "--patience", 60]
    for command, way in (
        ("describe", ["--offer", offer_file]),
        ("describe", through),
        ("adapt", through),
    ):
        status, _, told = client(command, *way, "--data", images, "--keep-ratio", 0.5, *words)
        assert (status, says in told) == (2, True), told
    assert not describing


def test_adapting_by_files_describes_nothing_and_takes_no_epsilon(client, images, offer_file):
    words = ["adapt", "--offer", offer_file, "--assignment", offer_file, "--out", "c", "--data", images]
    status, _, told = client(*words, "--epsilon", 8)
    assert (status, "--epsilon and --offer do not go together" in told) == (2, True)


def test_whoever_has_few_images_is_told_when_adapting_too(client, library, weights, images, tmp_path):
    draw_images(tmp_path / "many", classes=2, train=40)
    with running_server(library, weights) as port:
        for data, warned in ((images, True), (tmp_path / "many", False)):
            words = ["adapt", "--server", f"127.0.0.1:{port}", "--state", f"state-{warned}",
                     "--data", data, "--keep-ratio", 0.3, "--patience", 0, "--iterations", 1,
                     "--epsilon", 8]  # fmt: skip
            status, _, told = client(*words)
            assert (status, "Noise drowns" in told) == (0, warned), told


def test_the_warning_goes_by_the_counts_that_are_told_and_by_epsilon():
    assert warning_of(description([19, 20]), Privacy(8)).startswith("Noise drowns 1 of the 2 classes")
    assert "some 20 images" in warning_of(description([19, 20]), Privacy(8))
    assert warning_of(description([20, 20]), Privacy(8)) is None
    assert warning_of(description([65, 65]), Privacy(2)).startswith("Noise drowns 2 of the 2")
    assert warning_of(description([1, 1]), None) is None
    assert "nothing is guaranteed" in guarantee_of(None)
