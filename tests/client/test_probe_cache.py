"""A probe is fetched once for all states, commands and processes of a user, and never trusted blindly."""

import hashlib
import json
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from devices import remote
from flaky_proxy import FlakyProxy

from client.probe_cache import ProbeCache
from common.grpc_codec import Announced
from common.proto_codec import encode_offer


def announced(data: bytes) -> Announced:
    return Announced(len(data), hashlib.sha256(data).hexdigest())


@pytest.fixture
def probe_file(offer) -> bytes:
    return bytes(encode_offer(offer)[1])


@pytest.fixture
def of_its_own(monkeypatch, tmp_path) -> Path:
    """The user's cache is empty."""
    monkeypatch.setenv("MASKVOTE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "probes"


def offered(port: int, downloads: Path, cache: ProbeCache | None):
    """What a device is offered, and what it downloaded for it."""
    came = []
    with remote(port, downloads, probes=cache, transfer=lambda *now: came.append(now)) as coordinator:
        return coordinator.offer(), came


def test_another_state_of_the_same_server_fetches_no_probe(port, offer, probe_file, tmp_path):
    for number, expected in enumerate((True, False, False)):
        found, came = offered(port, tmp_path / f"state{number}", ProbeCache(tmp_path / "cache"))
        assert found.probe.digest == offer.probe.digest
        assert bool(came) == expected
    (kept,) = (tmp_path / "cache").iterdir()
    assert kept.read_bytes() == probe_file
    assert (tmp_path / "cache").stat().st_mode & 0o077 == 0


def test_without_a_cache_it_is_fetched_every_time(port, tmp_path):
    for number in range(2):
        _, came = offered(port, tmp_path / f"state{number}", None)
        assert came


@pytest.mark.parametrize("damage", [b"", b"x" * 100, "a bit"])
def test_a_damaged_file_is_fetched_again_and_mended(port, offer, probe_file, tmp_path, damage):
    cache = ProbeCache(tmp_path / "cache")
    cache.put(announced(probe_file), probe_file)
    (kept,) = (tmp_path / "cache").iterdir()
    flipped = probe_file[:-1] + bytes([probe_file[-1] ^ 1])
    kept.write_bytes(flipped if damage == "a bit" else damage)
    found, came = offered(port, tmp_path / "state", cache)
    assert came
    assert found.probe.digest == offer.probe.digest
    assert kept.read_bytes() == probe_file


def test_a_cache_that_cannot_be_written_costs_a_sentence_and_no_more(port, offer, tmp_path):
    (tmp_path / "file").write_text("in the way")
    told = []
    for number in range(2):
        cache = ProbeCache(tmp_path / "file" / "probes", tell=told.append)
        found, came = offered(port, tmp_path / f"state{number}", cache)
        assert came
        assert found.probe.digest == offer.probe.digest
    assert len(told) == 2
    assert "not kept for the next time in " in told[0]
    assert "Not a directory" in told[0]


def test_a_user_without_a_home_goes_on_without(monkeypatch, port, tmp_path):
    for name in ("MASKVOTE_CACHE", "XDG_CACHE_HOME", "HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(os, "getuid", lambda: 54321)  # an id without an account
    told = []
    cache = ProbeCache.of_user(told.append)
    assert "has no home. Let MASKVOTE_CACHE name" in told[0]
    _, came = offered(port, tmp_path / "state", cache)
    assert came


def test_the_least_recently_used_make_room_and_never_the_newest(tmp_path):
    cache = ProbeCache(tmp_path / "cache", max_bytes=250)
    probes = [bytes([number]) * 100 for number in range(4)]
    for number, data in enumerate(probes[:2]):
        cache.put(announced(data), data)
        os.utime(tmp_path / "cache" / f"{announced(data).sha256}.safetensors", (number, number))
    assert cache.get(announced(probes[0])) == probes[0]  # so that the other one was used before it
    cache.put(announced(probes[2]), probes[2])
    there = [cache.get(announced(data)) is not None for data in probes]
    assert there == [True, False, True, False]
    large = b"x" * 1000
    cache.put(announced(large), large)
    assert cache.get(announced(large)) == large
    assert len(list((tmp_path / "cache").iterdir())) == 1


def test_what_a_killed_process_began_to_write_goes(tmp_path):
    cache = ProbeCache(tmp_path / "cache")
    cache.put(announced(b"one"), b"one")
    old, new = (tmp_path / "cache" / f".{'a' * 64}.safetensors-{end}" for end in ("00000001", "00000002"))
    for path in (old, new):
        path.write_bytes(b"half")
    os.utime(old, (1, 1))
    cache.put(announced(b"two"), b"two")
    assert (old.exists(), new.exists()) == (False, True)


def test_many_at_once_see_a_whole_file_or_none(tmp_path):
    """Each has room for two of three probes, so that all of them make room all the time."""
    probes = [bytes([number]) * 100_000 for number in range(3)]

    def use(number: int) -> bool:
        cache = ProbeCache(tmp_path / "cache", max_bytes=250_000)
        found = []
        for turn in range(20):
            data = probes[(number + turn) % 3]
            found.append(cache.get(announced(data)))
            cache.put(announced(data), data)
        return all(data is None or bytes(data) in probes for data in found)

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(use, range(8)))
    assert 1 <= len(list((tmp_path / "cache").iterdir())) <= 2


def test_all_commands_share_it_and_adapt_tells_the_bytes_that_came(
    client, port, images, probe_file, of_its_own, tmp_path
):
    def adapt(state: str) -> dict[str, int]:
        words = ["adapt", "--server", f"127.0.0.1:{port}", "--data", images, "--keep-ratio", 0.3]
        status, told, _ = client(*words, "--state", state, "--iterations", 1, "--json")
        assert status == 0
        return json.loads(told)["bytes_down"]

    assert adapt("first")["probe"] == len(probe_file)
    assert adapt("second")["probe"] == 0
    assert adapt("first")["probe"] == len(probe_file)  # as it was when it ended
    assert [path.read_bytes() for path in of_its_own.iterdir()] == [probe_file]
    with FlakyProxy(port) as proxy:
        words = ["describe", "--server", proxy.address, "--data", images, "--keep-ratio", 0.3]
        assert client(*words)[0] == 0
        assert proxy.delivered < len(probe_file)
