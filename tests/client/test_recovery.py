"""A file of a device's state is damaged: what it is told to do then, done, leads to the same end."""

import json
import re
import shutil
from pathlib import Path

import pytest
from grpc_server import running_server

from client.state import RECOVERY
from common.backbone import weights_digest
from server.library import Library

STAGES = {
    "asked": ("offer", "request", "settings.json"),
    "assigned": ("offer", "request", "settings.json", "assignment"),
    "adapted": tuple(name for name in RECOVERY if name != "receipt"),
    "done": tuple(RECOVERY),
}
"""Which files there are, by the step that was done last."""
BEGINS_AGAIN = {("asked", "request")}
"""Where the request was needed yet: no file can be removed to go on."""
GOES_ON = {("assigned", "request"), ("adapted", "request"), ("done", "request")} | {
    (stage, "assignment") for stage in ("adapted", "done")
}
"""Where what is damaged is not needed any more."""


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("recovery")


@pytest.fixture(scope="module")
def served(place, offer, weights):
    """A library whose server outlives the tests, and that server's port."""
    with (
        Library.create(place / "library.db", offer, weights_digest(weights)) as library,
        running_server(library, weights) as port,
    ):
        yield library, port


@pytest.fixture
def adapt(client, served, images):
    def adapt(state: Path, port: int = served[1]) -> tuple[int, str, str]:
        """What `maskvote-client adapt` ends with."""
        return client(
            "adapt", "--data", images, "--server", f"127.0.0.1:{port}", "--state", state,
            "--keep-ratio", 0.3, "--patience", 0, "--iterations", 2, "--epsilon", 8, "--json",
        )  # fmt: skip

    return adapt


@pytest.fixture
def undamaged(adapt, place) -> tuple[Path, dict]:
    """A state whose steps are all done, and what it ended with."""
    status, told, _ = adapt(place / "undamaged")
    assert status == 0
    return place / "undamaged", json.loads(told)


def told_to_remove(message: str, state: Path) -> list[Path]:
    """The files that a message says to remove."""
    advice = re.search(rf"{state}/(\S+) cannot be used .*; remove it(?: and (\w+))?, and", message)
    assert advice, message
    assert message.count("cannot be used") == 1
    return [state / name for name in advice.groups() if name]


@pytest.mark.parametrize(
    ("stage", "name"), [(stage, n) for stage, names in STAGES.items() for n in names]
)
def test_doing_what_a_message_says_ends_as_if_nothing_had_been_damaged(
    adapt, undamaged, served, tmp_path, stage, name
):
    whole, expected = undamaged
    state = Path(shutil.copytree(whole, tmp_path / "state"))
    for other in set(RECOVERY) - set(STAGES[stage]):
        (state / other).unlink()
    (state / name).write_bytes((state / name).read_bytes()[:-1])
    status, told, message = adapt(state)
    if (stage, name) in BEGINS_AGAIN:
        assert status == 2
        assert f"{state / name} cannot be used" in message
        assert "begin again with another --state; with --epsilon that spends once more" in message
        again = json.loads(adapt(tmp_path / "another")[1])
        assert again["entry"] != expected["entry"]
        return
    if (stage, name) not in GOES_ON:
        assert status == 2
        for path in told_to_remove(message, state):
            path.unlink()
        status, told, message = adapt(state)
    assert status == 0, message
    ended = json.loads(told)
    kept = ("request", "entry", "budget", "units", "accuracy", "similarities")
    assert {fact: ended[fact] for fact in kept} == {fact: expected[fact] for fact in kept}
    assert (state / "network.safetensors").read_bytes() == (whole / "network.safetensors").read_bytes()
    assert [entry.entry for entry in served[0].entries()].count(expected["entry"]) == 1
    assert json.loads(adapt(state, port=1)[1]) == ended  # nobody is asked any more


@pytest.mark.parametrize("stage", ["assigned", "adapted", "done"])
def test_a_request_that_is_removed_is_not_made_anew(adapt, undamaged, tmp_path, stage):
    """It would be another one, and spend epsilon once more."""
    whole, expected = undamaged
    state = Path(shutil.copytree(whole, tmp_path / "state"))
    for other in {"request", *RECOVERY} - {n for n in STAGES[stage] if n != "request"}:
        (state / other).unlink()
    status, told, _ = adapt(state)
    assert (status, json.loads(told)["entry"]) == (0, expected["entry"])
    assert not (state / "request").exists()
    assert "request" not in json.loads(told)["bytes_up"]


def test_a_request_that_is_lost_and_needed_is_told_of(adapt, undamaged, tmp_path):
    """All that is left is the receipt: another request could not be the one that it is for."""
    state = Path(shutil.copytree(undamaged[0], tmp_path / "state"))
    for name in ("request", "assignment", "contribution"):
        (state / name).unlink()
    status, _, message = adapt(state)
    assert (status, f"{state / 'request'} is missing; begin again with another" in message) == (2, True)


# -- tuning that diverges --------------------------------------------------------------------------


def test_tuning_that_diverges_is_tried_again_in_the_same_state(client, library, weights, images):
    """With a smaller learning rate, and all else that the server was told nothing of, by one request."""
    with running_server(library, weights) as port:
        words = ["adapt", "--data", images, "--server", f"127.0.0.1:{port}", "--state", "state",
                 "--keep-ratio", 0.3, "--patience", 0, "--json"]  # fmt: skip
        status, _, message = client(*words, "--learning-rate", 1e12)
        assert status == 2
        assert re.search(
            r"loss is nan in iteration \d+ of 50, at a learning rate of 1e\+12; give", message
        )
        request = Path("state/request").read_bytes()
        gentle = [*words, "--learning-rate", 0.01, "--iterations", 3, "--seed", 1]
        status, told, _ = client(*gentle)
        assert status == 0
        assert json.loads(told)["accuracy"].keys() == {"0", "3"}
        assert Path("state/request").read_bytes() == request
        status, _, message = client(*gentle, "--learning-rate", 0.02)
    assert (status, "begun with learning rate 0.01, now it is 0.02" in message) == (2, True)
    assert len(library.entries()) == 1
    assert library.statistics().unanswered == 0


def test_within_seconds_tuning_that_diverges_gives_what_was_fitted(client, library, weights, images):
    with running_server(library, weights) as port:
        status, told, remark = client(
            "adapt", "--data", images, "--server", f"127.0.0.1:{port}", "--state", "state",
            "--keep-ratio", 0.3, "--patience", 0, "--json", "--learning-rate", 1e12, "--max-seconds", 60,
        )  # fmt: skip
    assert (status, "the best network before that was kept" in remark) == (0, True), remark
    accuracies = json.loads(told)["accuracy"].values()
    assert len({*accuracies}) == 1
    assert library.statistics().voting == 1
