"""Proved tables: made once, read as they were, and never used for anything else."""

import hashlib
import json
import logging
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from common.backbone import Backbone
from common.errors import InputError, MaskError, MismatchError, UnsupportedModel
from common.mask import Mask
from common.subnetwork import SubNetwork
from server import proved_table as module
from server.proved_table import ProvedTable, cache_directory, code_digest, proved_table

BOTH = ("internal", "residual")


@pytest.fixture(scope="module")
def tiny() -> Backbone:
    """The smallest that timm builds: four stages of one narrow block."""
    return small("test_resnet")


def small(model: str, num_classes: int = 5, image_size: int = 32, **arguments) -> Backbone:
    if model == "test_resnet":
        arguments = {"channels": [8, 12, 16, 24], "stem_width": 8, **arguments}
    return Backbone.from_timm(model, num_classes=num_classes, image_size=image_size, arguments=arguments)


class Watch:
    """Whether a proof was done, and how far it told to be."""

    def __init__(self) -> None:
        self.told: list[tuple[int, int]] = []

    def __call__(self, done: int, total: int) -> None:
        self.told.append((done, total))


@pytest.fixture(scope="module")
def made(tmp_path_factory, tiny) -> tuple[ProvedTable, Path, list[tuple[int, int]]]:
    """A table, the one file of its cache, and what the proof told meanwhile."""
    cache, watch = tmp_path_factory.mktemp("cache"), Watch()
    table = proved_table(tiny, cache=cache, watch=watch)
    (path,) = cache.iterdir()
    return table, path, watch.told


@pytest.fixture
def kept(made, tmp_path) -> Path:
    """A copy of that file, in a cache of its own."""
    path = tmp_path / made[1].name
    path.write_bytes(made[1].read_bytes())
    return path


def test_a_table_holds_groups_of_both_kinds_and_tells_how_the_proof_goes(made):
    table, _, told = made
    count = len(table.found.groups)
    assert {group.kind for group in table.found.groups} == set(BOTH)
    assert told == [(done, count) for done in range(count + 1)]
    assert table.is_complete
    assert 0 < table.proof_seconds.wall < 60
    assert 0 < table.discovery_seconds.cpu < 60


def test_its_structure_has_what_is_proved_of_the_kinds_and_nothing_else(made):
    table = made[0]
    first = table.proof.verdicts[0]
    spoilt = replace(first, outcome="differs", reason="outputs lie 1 apart")
    frozen = replace(table, proof=replace(table.proof, verdicts=(spoilt, *table.proof.verdicts[1:])))
    structure = frozen.structure(BOTH)
    assert [group.name for group in structure.groups] == [g.name for g in table.found.groups[1:]]
    assert structure.frozen[first.group] == "differs: outputs lie 1 apart"
    internal = table.structure(("internal",))
    assert {group.kind for group in internal.groups} == {"internal"}
    assert internal.digest == table.proof.proved(table.found).only(("internal",)).digest


def test_the_second_time_it_is_read_and_says_the_same(made, kept, tiny):
    watch = Watch()
    again = proved_table(tiny, cache=kept.parent, watch=watch)
    assert watch.told == []
    assert again.to_json() == made[0].to_json()
    assert again.structure(BOTH) == made[0].structure(BOTH)


def test_a_table_is_the_same_after_json(made):
    assert ProvedTable.from_json(made[0].to_json()).to_json() == made[0].to_json()


@pytest.mark.parametrize(
    "text", ["", "[]\n{}", '{"format": 1}\n', "text", '{"format": 1}\n{"format": 2}']
)
def test_a_text_that_is_no_table_is_told(text):
    with pytest.raises(InputError, match=r"no table|not a structure"):
        ProvedTable.from_json(text)


def test_verdicts_of_other_groups_make_no_table(made):
    table = made[0]
    proof = replace(table.proof, verdicts=table.proof.verdicts[1:])
    with pytest.raises(InputError, match="not those of the groups"):
        replace(table, proof=proof)


@pytest.mark.parametrize("model", ["test_resnet", "test_vit"])
def test_one_table_is_right_for_every_number_of_classes(tmp_path, model):
    """Groups do not depend on it, and costs are those found with so many classes."""
    proved_table(small(model), cache=tmp_path)
    for classes in (2, 7, 1000):
        backbone, watch = small(model, num_classes=classes), Watch()
        structure = proved_table(backbone, cache=tmp_path, watch=watch).structure(BOTH)
        direct = backbone.structure(BOTH)
        assert watch.told == []
        assert structure.digest == direct.digest
        assert structure.classes == classes
        for kept in (direct.sizes, direct.smallest):
            assert structure.parameters(kept) == direct.parameters(kept)
            assert structure.flops(kept) == direct.flops(kept)


@pytest.mark.parametrize(
    "other",
    [
        {"image_size": 64},
        {"stem_width": 12},
        {"channels": [8, 12, 16, 32]},
        {"layers": [1, 1, 1, 2]},
        {"in_chans": 1},
    ],
    ids=str,
)
def test_other_arguments_and_image_sizes_have_a_table_of_their_own(kept, tiny, other):
    """What is cached for one is never read for another, and masks of both are kept apart."""
    theirs = small("test_resnet", **other)
    watch = Watch()
    table = proved_table(theirs, cache=kept.parent, seconds=0, watch=watch)
    assert watch.told
    assert len(list(kept.parent.iterdir())) == 2
    ours = proved_table(tiny, cache=kept.parent)
    assert table.found.model["arguments"] == theirs.arguments
    assert table.found.digest != ours.found.digest


def test_tables_of_older_code_are_not_trusted(kept, tiny, monkeypatch):
    monkeypatch.setattr(module, "code_digest", lambda: "newer")
    watch = Watch()
    assert proved_table(tiny, cache=kept.parent, watch=watch).code == "newer"
    assert watch.told
    assert len(list(kept.parent.iterdir())) == 2


def test_the_code_that_tables_follow_from_is_there():
    """A file that is renamed would otherwise drop out of the digest unnoticed."""
    root = Path(module.common.__file__).parent
    assert all(list(root.glob(pattern)) for pattern in module.CODE)
    assert len(code_digest()) == 64


def sealed(text: str) -> bytes:
    return hashlib.sha256(text.encode()).hexdigest().encode() + b"\n" + text.encode()


def altered(data: bytes, **model) -> bytes:
    """The file of a table that says it is of another model, sealed as it should be."""
    head, structure = data.decode().split("\n")[1:]
    parsed = json.loads(structure)
    parsed["model"] |= model
    return sealed(head + "\n" + json.dumps(parsed))


DAMAGE = {
    "cut short": (lambda data: data[: len(data) // 2], "damaged"),
    "empty": (lambda data: b"", "damaged"),
    "no text": (lambda data: b"\xff\x00" * 50, "damaged"),
    "a changed byte": (lambda data: data.replace(b'"equal"', b'"runs!"', 1), "damaged"),
    "no table": (lambda data: sealed('{"format": 1}\n{}'), "not a structure"),
    "another format": (lambda data: sealed(data.decode().partition("\n")[2].replace(
        '"format": 1', '"format": 99', 1)), "format 99"),
    "another timm": (lambda data: altered(data, timm="0.9.1"), "timm 0.9.1, not "),
    "another model": (lambda data: altered(data, model="resnet18"), "model resnet18, not test_resnet"),
    "other arguments": (lambda data: altered(data, arguments={}), "arguments {}, not "),
    "another size": (lambda data: altered(data, input_size=[3, 9, 9]), r"input_size [3, 9, 9], not "),
    "other code": (lambda data: sealed(data.decode().partition("\n")[2].replace(
        code_digest(), "0" * 64)), "other code"),
}  # fmt: skip


@pytest.mark.parametrize(("damage", "told"), DAMAGE.values(), ids=DAMAGE.keys())
def test_what_is_not_this_backbones_table_is_proved_anew_with_one_warning(
    made, kept, tiny, caplog, monkeypatch, damage, told
):
    """Discovery and proof are those of before here, so that it takes no time; that they ran is told."""
    ran = []
    monkeypatch.setattr(module, "_make", lambda *_: ran.append(1) or made[0])
    whole = kept.read_bytes()
    kept.write_bytes(damage(whole))
    with caplog.at_level(logging.WARNING):
        proved_table(tiny, cache=kept.parent)
    assert ran
    (message,) = caplog.messages
    assert told in message
    assert str(kept) in message
    assert "\n" not in message
    caplog.clear()
    assert ProvedTable.from_json(kept.read_text().partition("\n")[2]).to_json() == made[0].to_json()
    proved_table(tiny, cache=kept.parent)
    assert caplog.messages == []
    assert len(ran) == 1


def test_a_table_put_in_the_place_of_another_is_not_used(tmp_path, kept, tiny, caplog):
    """All of it for real: the file of one model under the name of another's."""
    vit = small("test_vit")
    expected = proved_table(vit, cache=tmp_path / "vit").structure(BOTH).digest
    (path,) = (tmp_path / "vit").iterdir()
    path.write_bytes(kept.read_bytes())
    table = proved_table(vit, cache=tmp_path / "vit")
    assert "model test_resnet, not test_vit" in caplog.text
    assert table.structure(BOTH).digest == expected


def test_a_cache_that_cannot_be_written_is_a_warning(tmp_path, tiny, caplog):
    (tmp_path / "file").write_text("no directory")
    table = proved_table(tiny, cache=tmp_path / "file" / "cache", seconds=0)
    assert len(table.found.groups) > 0
    assert "the proof is not kept" in caplog.text


def test_a_cache_on_a_full_disk_is_a_warning(tiny_temporary, tiny, caplog):
    (tiny_temporary / "filling").write_bytes(bytes((1 << 20) - 8192))
    table = proved_table(tiny, cache=tiny_temporary / "cache", seconds=0)
    assert len(table.found.groups) > 0
    assert f"the proof is not kept: {tiny_temporary}/cache/" in caplog.text
    assert "No space left on device" in caplog.text


def test_a_cache_that_may_only_be_read_is_read_and_else_a_warning(tiny_temporary, kept, tiny, caplog):
    shutil.copy(kept, tiny_temporary)
    subprocess.run(["mount", "-o", "remount,ro", str(tiny_temporary)], check=True)
    watch = Watch()
    proved_table(tiny, cache=tiny_temporary, watch=watch)
    assert (watch.told, caplog.messages) == ([], [])
    proved_table(small("test_resnet", image_size=64), cache=tiny_temporary, seconds=0)
    assert "the proof is not kept" in caplog.text
    assert "Read-only file system" in caplog.text


def test_a_directory_in_the_place_of_a_table_is_a_warning(kept, tiny, caplog):
    kept.unlink()
    kept.mkdir()
    assert proved_table(tiny, cache=kept.parent, seconds=0).found.groups
    assert f"{kept} is not used, proving anew" in caplog.text
    assert "the proof is not kept" in caplog.text


def test_a_sealed_file_that_is_no_text_is_a_warning(kept, tiny, caplog):
    data = b"\xff" * 50
    kept.write_bytes(hashlib.sha256(data).hexdigest().encode() + b"\n" + data)
    proved_table(tiny, cache=kept.parent, seconds=0)
    assert f"{kept} is not used, proving anew" in caplog.text


def test_a_user_without_a_home_is_warned_that_the_proof_is_not_kept(tmp_path):
    """In a user namespace, of an id that the system has no account for."""
    nobody = ["env", "-u", "HOME", "-u", "XDG_CACHE_HOME", "-u", "MASKVOTE_CACHE"]
    nobody += ["unshare", "-U", "--map-user=54321"]
    possible = shutil.which("unshare") and not subprocess.run([*nobody, "true"], check=False).returncode
    if not possible:
        pytest.skip("no user namespace can be made here")
    ended = subprocess.run(
        [*nobody, sys.executable, "-m", "server", "inspect", "test_resnet", "--seconds", "0"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(Path(module.__file__).parents[1])},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr
    (line,) = ended.stderr.splitlines()
    assert line.startswith(
        "warning: the proof is not kept: this user has no home; let MASKVOTE_CACHE name"
    )
    assert "groups are proved" in ended.stdout
    assert list(tmp_path.iterdir()) == []


def test_a_proof_that_ran_out_of_time_is_done_again_only_when_more_is_given(tmp_path, tiny):
    short = proved_table(tiny, cache=tmp_path, seconds=0)
    assert not short.is_complete
    assert short.structure(BOTH).groups == ()
    assert all("longer than 0 seconds" in reason for reason in short.proof.frozen.values())
    again, more, less = Watch(), Watch(), Watch()
    proved_table(tiny, cache=tmp_path, seconds=0, watch=again)
    assert again.told == []
    assert proved_table(tiny, cache=tmp_path, watch=more).is_complete
    assert more.told
    assert proved_table(tiny, cache=tmp_path, seconds=0, watch=less).is_complete
    assert less.told == []


def test_a_fresh_table_reads_nothing_and_replaces_what_is_there(kept, tiny):
    before, watch = kept.read_bytes(), Watch()
    proved_table(tiny, cache=kept.parent, fresh=True, watch=watch)
    assert watch.told
    assert list(kept.parent.iterdir()) == [kept]
    assert kept.read_bytes() != before  # it took another time


def test_a_backbone_of_another_timm_is_refused(tmp_path, tiny):
    with pytest.raises(MismatchError, match=r"described with timm 0\.9\.1, installed is"):
        proved_table(replace(tiny, timm_version="0.9.1"), cache=tmp_path)


def test_a_model_that_cannot_be_run_is_told_in_a_sentence(tmp_path, tiny, monkeypatch):
    def failing(*_, **__):
        raise RuntimeError("mat1 and mat2\nand a long story")

    monkeypatch.setattr(module, "prove", failing)
    with pytest.raises(UnsupportedModel, match=r"cannot be run .* mat1 and mat2; choose another"):
        proved_table(tiny, cache=tmp_path)


def test_the_directory_is_the_variables_else_the_users_cache(monkeypatch, tmp_path):
    monkeypatch.setenv("MASKVOTE_CACHE", str(tmp_path / "own"))
    assert cache_directory() == tmp_path / "own" / "structures"
    monkeypatch.delenv("MASKVOTE_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_directory() == tmp_path / "xdg" / "maskvote" / "structures"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_directory() == tmp_path / ".cache" / "maskvote" / "structures"


def test_masks_of_another_table_are_refused(kept, tiny, backbone, structure, weights):
    """By their length; and where that is the same, by the digest that travels with them."""
    table = proved_table(tiny, cache=kept.parent)
    ours, internal = table.structure(BOTH), table.structure(("internal",))
    with pytest.raises(MaskError, match="use a mask of this backbone"):
        Mask.unpack(internal, Mask.full(ours).pack())
    larger = small("test_resnet", image_size=64).structure(BOTH)
    assert larger.sizes == ours.sizes
    with pytest.raises(MismatchError, match="masks of two structures"):
        Mask.full(ours).within(Mask.full(larger))
    cut = SubNetwork.of(backbone, weights, Mask.full(structure)).to_bytes()
    other = replace(structure, model={**structure.model, "input_size": [3, 64, 64]})
    with pytest.raises(MismatchError, match="fetch the server's structure again"):
        SubNetwork.from_bytes(bytes(cut), other)
