"""`maskvote-client predict`: what it says of images, without torch, whatever their number."""

import csv
import json
import os
import pty
import shutil
import subprocess
import sys
import unicodedata
from pathlib import Path

import onnx
import pytest
import torch
from cut_networks import CLASSES, cut_network
from drawn_images import draw_images
from PIL import Image

from client.artefacts.card import card_path
from client.artefacts.exporting import export_artefact
from client.artefacts.facts import all_logits
from client.artefacts.torch_network import logits_of
from client.export import SavedNetwork, load_network, save_network
from common.backbone import Backbone
from common.image_folders import SUFFIXES_IN_WORDS
from common.images import FileImages
from common.importance import magnitude
from common.mask import Mask
from common.rebuild import rebuild
from common.subnetwork import cut

ROOT = Path(__file__).parents[2]
TORCH = ("torch", "torchvision", "timm", "flwr", "grpc", "onnx", "safetensors")
MEBIBYTE = 1024


@pytest.fixture(scope="module")
def saved() -> SavedNetwork:
    return cut_network("vit_tiny_patch16_224", embed_dim=24, depth=1, num_heads=3)


@pytest.fixture(scope="module")
def place(tmp_path_factory, saved) -> Path:
    """A directory with artefacts of one network, and images: some in folders below others."""
    place = tmp_path_factory.mktemp("place")
    for kind, name in (("onnx", "my.onnx"), ("safetensors", "my.safetensors")):
        export_artefact(kind, place / name, saved, None, lambda doing: None)
    draw_images(place / "photos", classes=4, train=4, judging=3)
    Image.new("L", (50, 20), 90).save(place / "photos" / "grey.PNG")
    (place / "photos" / "notes.txt").write_text("no image")
    return place


@pytest.fixture
def own(place, tmp_path) -> Path:
    """A copy of the place that a test may spoil."""
    return Path(shutil.copytree(place, tmp_path / "own"))


def images_below(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.suffix.lower() == ".png"]


@pytest.mark.parametrize("name", ["my.onnx", "my.safetensors"])
@pytest.mark.parametrize("batch", [1, 5])
def test_every_image_gets_the_class_that_torch_gives_it(client, place, saved, name, batch):
    words = ("--network", place / name, place / "photos", "--batch", batch, "--json")
    status, out, err = client("predict", *words)
    assert status == 0
    assert err == f"left out of {place / 'photos'}: 1 .txt file; image files end in {SUFFIXES_IN_WORDS}"
    told = {row["image"]: row["likeliest"][0] for row in json.loads(out)["predictions"]}
    paths = images_below(place / "photos")
    assert sorted(told) == sorted(map(str, paths))
    assert len(told) == 29
    images = FileImages(paths, [0] * len(paths), saved.backbone)
    expected = torch.from_numpy(all_logits(logits_of(saved.network), images).argmax(1))
    assert [told[str(path)]["class"] for path in paths] == [CLASSES[k] for k in expected]
    assert len(set(expected.tolist())) > 1
    with torch.no_grad():
        shares = saved.network(images.batch(torch.arange(len(paths)))).softmax(1).amax(1)
    given = torch.tensor([told[str(path)]["probability"] for path in paths])
    assert torch.allclose(given, shares, atol=1e-5)


def test_predictions_in_a_file_are_those_that_evaluate_counts(client, place, tmp_path):
    for part in ("train", "val"):
        for label, name in enumerate(CLASSES):
            source = place / "photos" / part / f"class{label}"
            shutil.copytree(source, tmp_path / "mine" / part / name)
    status, out, _ = client(
        "evaluate", "--network", place / "my.safetensors", "--data", tmp_path / "mine", "--json"
    )
    assert status == 0
    words = ("--network", place / "my.onnx", tmp_path / "mine" / "val", "--out", tmp_path / "mine.csv")
    status, told, err = client("predict", *words)
    assert (status, err) == (0, "")
    assert "12 of 12 images classified" in told
    with (tmp_path / "mine.csv").open() as file:
        rows = list(csv.DictReader(file))
    right = sum(Path(row["image"]).parent.name == row["class"] for row in rows)
    assert (right, len(rows)) == (round(12 * json.loads(out)["accuracy"]), 12)


def test_the_likeliest_classes_stand_from_the_left_in_csv_json_and_table(client, place, tmp_path):
    words = ("--network", place / "my.onnx", place / "photos" / "grey.PNG", "--top", 3)
    assert client("predict", *words, "--out", tmp_path / "mine.csv")[0] == 0
    (row,) = csv.DictReader((tmp_path / "mine.csv").open())
    assert list(row) == [
        "image",
        "class",
        "probability",
        "class_2",
        "probability_2",
        "class_3",
        "probability_3",
    ]
    status, out, _ = client("predict", *words, "--out", tmp_path / "mine.json", "--json")
    assert status == 0
    assert out == (tmp_path / "mine.json").read_text()
    (told,) = json.loads(out)["predictions"]
    names = [one["class"] for one in told["likeliest"]]
    shares = [one["probability"] for one in told["likeliest"]]
    assert [row["class"], row["class_2"], row["class_3"]] == names
    assert shares == sorted(shares, reverse=True)
    assert len(set(names)) == 3
    status, out, _ = client("predict", *words)
    heading, line = out.splitlines()
    assert line.split("  ")[0] == str(place / "photos" / "grey.PNG")
    assert [line.index(name) for name in names] == sorted(line.index(name) for name in names)
    assert f"{shares[0]:.1%}" in line
    assert heading.index("class 2") == line.index(names[1])


def test_more_classes_than_there_are_are_all_of_them(client, place):
    words = ("--network", place / "my.onnx", place / "photos" / "grey.PNG", "--top", 99, "--json")
    (told,) = json.loads(client("predict", *words)[1])["predictions"]
    assert sorted(one["class"] for one in told["likeliest"]) == sorted(CLASSES)
    assert sum(one["probability"] for one in told["likeliest"]) == pytest.approx(1)


def test_images_that_cannot_be_read_are_named_at_the_end_and_the_others_classified(client, own):
    bad = [own / "photos" / "a.jpg", own / "photos" / "train" / "class1" / "0.png"]
    for path in bad:
        path.write_bytes(path.read_bytes()[:100] if path.exists() else b"no image")
    words = ("--network", own / "my.onnx", own / "photos", "--batch", 4, "--json")
    status, out, err = client("predict", *words)
    assert status == 1
    told = json.loads(out)
    assert len(told["predictions"]) == 28
    assert [row["image"] for row in told["failed"]] == [str(path) for path in bad]
    assert told["failed_count"] == 2
    assert all(f"error: {path} cannot be read as an image" in err for path in bad)


def test_names_that_would_order_a_terminal_about_are_shown_harmless_and_kept_in_files(client, own):
    strange = os.fsdecode(b"a\x1b[31m\xff,b.png")
    shutil.copy(own / "photos" / "grey.PNG", own / strange)
    status, out, _ = client("predict", "--network", own / "my.onnx", own / strange)
    assert status == 0
    assert "\x1b" not in out
    assert "a\\x1b[31m\\udcff,b.png" in out
    words = ("--network", own / "my.onnx", own / strange, "--out")
    assert client("predict", *words, own / "mine.csv")[0] == 0
    assert b"a\x1b[31m\xff,b.png" in (own / "mine.csv").read_bytes()
    assert client("predict", *words, own / "mine.json")[0] == 0
    (told,) = json.loads((own / "mine.json").read_text())["predictions"]
    assert told["image"] == str(own / strange)


@pytest.mark.parametrize("suffix", [".onnx", ".safetensors"])
def test_an_artefact_may_have_a_name_that_is_no_text(client, own, suffix):
    strange = own / os.fsdecode(b"my\xff" + suffix.encode())
    card_path(own / f"my{suffix}").rename(card_path(strange))
    (own / f"my{suffix}").rename(strange)
    status, out, err = client("predict", "--network", strange, own / "photos" / "grey.PNG")
    assert (status, err) == (0, "")
    assert len(out.splitlines()) == 2


def test_predictions_go_to_stdout_while_bars_show_on_stderr(own):
    """Rich would send both to the terminal that stderr is."""
    ours, theirs = pty.openpty()
    words = [sys.executable, "-m", "client", "predict", "--network", "my.onnx", "photos", "--json"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "TERM": "xterm"}
    ended = subprocess.run(
        words, cwd=own, env=environment, stdout=subprocess.PIPE, stderr=theirs, timeout=60, check=True
    )
    os.close(theirs)
    shown = os.read(ours, 100_000)
    os.close(ours)
    assert b"Classifying" in shown
    assert len(json.loads(ended.stdout)["predictions"]) == 29


def test_a_link_to_where_it_lies_is_followed_once(client, own):
    (own / "photos" / "train" / "round").symlink_to(own / "photos")
    (own / "photos" / "elsewhere").symlink_to(own / "photos" / "val" / "class0")
    status, out, _ = client("predict", "--network", own / "my.onnx", own / "photos", "--json")
    assert status == 0
    assert len(json.loads(out)["predictions"]) == 29 + 3


def test_folders_are_walked_as_for_training_and_what_is_named_is_read_whatever_its_name(client, own):
    for name in ("._0.png", ".ipynb_checkpoints/0.png", "@eaDir/0.png"):
        path = own / "photos" / "train" / "class0" / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"no image")
    Image.new("RGB", (50, 20)).save(own / "photos" / "phone.jfif", "JPEG")
    words = ("--network", own / "my.onnx", own / "photos", "--json")
    status, out, err = client("predict", *words)
    assert (status, len(json.loads(out)["predictions"])) == (0, 30)
    assert "1 .txt file, 1 hidden file, 2 folders (.ipynb_checkpoints, @eaDir); image files end in" in err
    shutil.copy(own / "photos" / "grey.PNG", own / ".hidden")
    status, out, err = client("predict", "--network", own / "my.onnx", own / ".hidden", "--json")
    assert (status, len(json.loads(out)["predictions"]), err) == (0, 1, "")


def test_class_names_are_told_in_composed_form_whatever_the_file_has(client, own):
    """As a file of another program may have them, or one of an earlier version on macOS."""
    card_path(own / "my.onnx").unlink()
    model = onnx.load(own / "my.onnx")
    words = {prop.key: prop.value for prop in model.metadata_props}
    decomposed = [unicodedata.normalize("NFD", f"café {k}") for k in range(4)]
    onnx.helper.set_model_props(model, words | {"classes": "\n".join(decomposed)})
    onnx.save(model, own / "my.onnx")
    words = ("--network", own / "my.onnx", own / "photos" / "grey.PNG", "--top", 4, "--json")
    (told,) = json.loads(client("predict", *words)[1])["predictions"]
    assert sorted(one["class"] for one in told["likeliest"]) == [f"café {k}" for k in range(4)]


# bad input


def with_another_card(own: Path) -> Path:
    shutil.copy(card_path(own / "my.safetensors"), card_path(own / "my.onnx"))
    return own / "my.onnx"


def damaged(own: Path) -> Path:
    card_path(own / "my.onnx").unlink()
    (own / "my.onnx").write_bytes((own / "my.onnx").read_bytes()[:-5000])
    return own / "my.onnx"


def changed(own: Path) -> Path:
    (own / "my.onnx").write_bytes((own / "my.onnx").read_bytes()[:-1] + b"?")
    return own / "my.onnx"


def text(own: Path) -> Path:
    (own / "text.onnx").write_text("no network")
    return own / "text.onnx"


def of_somebody_else(own: Path) -> Path:
    model = onnx.load(own / "my.onnx")
    del model.metadata_props[:]
    onnx.save(model, own / "other.onnx")
    return own / "other.onnx"


def of_other_words(own: Path) -> Path:
    model = onnx.load(own / "my.onnx")
    onnx.helper.set_model_props(model, {"backbone": "[1]", "classes": "owl\nwren"})
    onnx.save(model, own / "other.onnx")
    return own / "other.onnx"


def of_too_few_names(own: Path) -> Path:
    model = onnx.load(own / "my.onnx")
    words = {prop.key: prop.value for prop in model.metadata_props} | {"classes": "owl\nwren"}
    del model.metadata_props[:]
    onnx.helper.set_model_props(model, words)
    onnx.save(model, own / "other.onnx")
    return own / "other.onnx"


def of_other_inputs(own: Path) -> Path:
    model = onnx.load(own / "my.onnx")
    model.graph.input[0].name = "pixels"
    for node in model.graph.node:
        node.input[:] = ["pixels" if name == "images" else name for name in node.input]
    onnx.save(model, own / "other.onnx")
    return own / "other.onnx"


def damaged_tensors(own: Path) -> Path:
    card_path(own / "my.safetensors").unlink()
    (own / "my.safetensors").write_bytes((own / "my.safetensors").read_bytes()[:-1])
    return own / "my.safetensors"


def program_without_card(own: Path) -> Path:
    (own / "my.pte").write_bytes(b"program")
    return own / "my.pte"


NETWORKS = {
    with_another_card: (3, "is the card of another artefact"),
    damaged: (2, "is damaged or no ONNX file"),
    changed: (3, "is the card of another artefact"),
    text: (2, "is damaged or no ONNX file"),
    of_somebody_else: (2, "its metadata has no backbone and no classes"),
    of_other_words: (2, "does not tell how images are prepared"),
    of_too_few_names: (2, "gives 4 logits and names 2 classes"),
    of_other_inputs: (2, "does not run"),
    damaged_tensors: (2, "cannot be used as a network"),
    program_without_card: (2, "has no card my.pte.json beside it"),
    lambda own: own / "nothing.onnx": (2, "nothing.onnx cannot be read"),
    lambda own: own / "photos" / "notes.txt": (2, "ends in '.txt'; an artefact ends in .onnx"),
    lambda own: own / "photos": (2, "cannot be read (it is a directory)"),
}


@pytest.mark.parametrize("spoil", NETWORKS, ids=lambda spoil: spoil.__name__)
def test_what_is_no_network_of_ours_is_refused_in_a_sentence(client, own, spoil):
    exit_status, reason = NETWORKS[spoil]
    network = spoil(own)
    status, out, err = client("predict", "--network", network, own / "photos")
    assert (status, out) == (exit_status, "")
    assert reason in err
    assert err.startswith("error: ")
    assert err.count("error: ") == 1


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["nowhere"], "there is no image and no folder nowhere"),
        (["empty"], f"no image ({SUFFIXES_IN_WORDS}) in empty"),
        (["own/photos", "--out", "mine.txt"], "written as .csv or .json, and mine.txt is neither"),
        (["own/photos", "--out", "nowhere/mine.csv"], "nowhere/mine.csv cannot be written"),
        (["own/photos", "--batch", "0"], "0 is not in the range"),
        (["own/photos", "--top", "0"], "0 is not in the range"),
    ],
)
def test_what_cannot_be_done_is_told_in_a_sentence_and_nothing_is_written(
    client, own, tmp_path, words, reason
):
    (tmp_path / "empty").mkdir()
    status, out, err = client("predict", "--network", own / "my.onnx", *words)
    assert (status, out) == (2, "")
    assert reason in err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["empty", "own"]


def test_without_onnxruntime_the_package_to_install_is_named(client, own, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    status, _, err = client("predict", "--network", own / "my.onnx", own / "photos")
    assert status == 2
    assert 'pip install "onnxruntime"' in err


# without torch


MEASURED = """
import json, re, sys
from client.cli import main
sys.argv = ["maskvote-client", *sys.argv[1:]]
try:
    main()
except SystemExit as ended:
    status = ended.code
imported = sorted({name.split(".")[0] for name in sys.modules})
peak = int(re.search(r"VmHWM:\\s+(\\d+) kB", open("/proc/self/status").read())[1])
print(json.dumps({"status": status, "imported": imported, "peak": peak}), file=sys.stderr)
"""


def measured(*words: object) -> dict:
    """A fresh process that predicts: its exit status, what it imported, and its peak memory in KiB.

    From the kernel's own high-water mark: getrusage tells that of the process before exec too.
    """
    ended = subprocess.run(
        [sys.executable, "-c", MEASURED, *map(str, words)],
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=True,
    )
    return json.loads(ended.stderr.splitlines()[-1])


linux = pytest.mark.skipif(sys.platform != "linux", reason="peak memory is read from /proc")


@pytest.fixture(scope="module")
def tenth(tmp_path_factory) -> Path:
    """A ResNet-18's sub-network of a tenth of its units, for 64 pixels, as ONNX."""
    backbone = Backbone.from_timm("resnet18", num_classes=10, image_size=64)
    structure = backbone.structure()
    generator = torch.Generator().manual_seed(0)
    weights = {
        name: torch.rand(tensor.shape, generator=generator) / 100
        for name, tensor in backbone.skeleton().state_dict().items()
    }
    mask = Mask.keep_top(
        structure, magnitude(weights, structure), [round(units / 10) for units in structure.sizes]
    )
    network = rebuild(backbone, cut(weights, mask))
    file = tmp_path_factory.mktemp("tenth") / "my.onnx"
    saved = SavedNetwork(network, backbone, tuple(f"class {k}" for k in range(10)), mask.digest)
    export_artefact("onnx", file, saved, None, lambda doing: None)
    return file


@linux
def test_it_imports_no_torch_and_stays_below_120_mb_whatever_the_number_of_images(tenth, tmp_path):
    few = draw_images(tmp_path / "few", classes=2, train=20, judging=10)
    many = draw_images(tmp_path / "many", classes=2, train=400, judging=200)
    peaks = []
    for folder in (few, many):
        told = measured(
            "predict", "--network", tenth, folder, "--out", tmp_path / "mine.csv", "--batch", 8
        )
        assert told["status"] == 0
        assert "onnxruntime" in told["imported"]
        assert set(told["imported"]) & set(TORCH) == set()
        peaks.append(told["peak"])
    assert len((tmp_path / "mine.csv").read_text().splitlines()) == 1201
    assert max(peaks) < 120 * MEBIBYTE
    # Kept as pixels, twenty times the images would take 14 MB more; the rest is the allocator's.
    assert peaks[1] - peaks[0] < 6 * MEBIBYTE


def without_torch(*words: object) -> subprocess.CompletedProcess:
    source = (
        "import sys; sys.modules.update(dict.fromkeys(['torch', 'timm', 'torchvision', 'flwr', 'grpc']));"
        "from client.cli import main; sys.argv[0] = 'maskvote-client'; main()"
    )
    return subprocess.run(
        [sys.executable, "-c", source, *map(str, words)],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )


def test_a_device_without_torch_predicts_and_is_told_what_the_rest_needs(place):
    ended = without_torch("predict", "--network", place / "my.onnx", place / "photos")
    assert (ended.returncode, len(ended.stdout.splitlines())) == (0, 30)
    helped = without_torch("--help")
    assert helped.returncode == 0
    assert "predict" in helped.stdout
    out = ("--out", place / "new.onnx")
    for words in (
        ["adapt", "--help"],
        ["export", "--network", place / "my.safetensors", "--format", "onnx", *out],
    ):
        refused = without_torch(*words)
        assert refused.returncode == 2
        assert "is not installed; pip install maskvote" in refused.stderr
        assert "Traceback" not in refused.stderr
    tensors = without_torch("predict", "--network", place / "my.safetensors", place / "photos")
    assert tensors.returncode == 2
    assert "a safetensors file is run with torch" in tensors.stderr


def test_threads_bound_what_runs_the_network(client, place):
    """Of torch, which tells how many it takes; onnxruntime does not, and says the same of an image."""
    before = torch.get_num_threads()
    image = (place / "photos" / "grey.PNG", "--json")
    try:
        assert client("predict", "--network", place / "my.safetensors", *image, "--threads", 3)[0] == 0
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)
    words = ("predict", "--network", place / "my.onnx", *image)
    assert client(*words, "--threads", 1)[:2] == client(*words)[:2]


def test_what_adapt_saved_is_classified_with_as_it_is(client, place, saved, tmp_path):
    save_network(tmp_path / "kept.safetensors", saved.network, saved.backbone, CLASSES, "ab" * 32)
    assert load_network(tmp_path / "kept.safetensors").mask == "ab" * 32
    words = (place / "photos" / "grey.PNG", "--json")
    status, out, _ = client("predict", "--network", tmp_path / "kept.safetensors", *words)
    assert status == 0
    assert out == client("predict", "--network", place / "my.safetensors", *words)[1]
