"""docs/deploy-flower.md is followed as it stands: TLS, a key per device, a run, a proxy before it."""

import json
import os
import shutil
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
from documents import Block, Terminal, read_blocks, with_free_ports
from federation import ENVIRONMENT
from random_weights import random_weights
from safetensors.torch import save_file

from common.backbone import Backbone
from server.library import Library

ROOT = Path(__file__).parents[2]
DOCUMENT = ROOT / "docs" / "deploy-flower.md"
RUN, PROXY = "A run", "Open to devices, and to nobody else"

MISSING = [program for program in ("openssl", "ssh-keygen") if shutil.which(program) is None]
pytestmark = pytest.mark.skipif(bool(MISSING), reason=f"not on this machine: {MISSING}")

NGINX = shutil.which("nginx", path=f"{os.environ['PATH']}:/usr/sbin")
AROUND = """
daemon off; user root; pid {place}/nginx.pid; error_log stderr notice;
events {{}}
http {{
    access_log off; client_body_temp_path {place}/nginx; proxy_temp_path {place}/nginx;
    fastcgi_temp_path {place}/nginx; uwsgi_temp_path {place}/nginx; scgi_temp_path {place}/nginx;
    include {place}/devices.conf;
}}
"""
"""What stands around /etc/nginx/conf.d/* on a server, without touching what is this machine's."""


@pytest.fixture(scope="module")
def guide() -> list[Block]:
    return with_free_ports(read_blocks(DOCUMENT), 8000, 8443, 9094, 9095, 9096)


@pytest.fixture(scope="module")
def place(tmp_path_factory, tasks) -> Path:
    """What the guide's reader has before."""
    place = tmp_path_factory.mktemp("place")
    (place / "maskvote").symlink_to(ROOT)
    for task, there in enumerate(["tasks/first", "tasks/second", "device1/images"]):
        shutil.copytree(tasks / f"task{task}", place / there)
    shutil.copytree(tasks / "task0", place / "device2" / "images")
    backbone = Backbone.from_timm("test_resnet", num_classes=20)
    save_file(random_weights(backbone), place / "backbone.safetensors")
    return place


@pytest.fixture(scope="module")
def followed(place, guide):
    """The reader's terminal after the guide, up to where it needs a proxy."""
    with Terminal(place, ENVIRONMENT | {"PYTHONPATH": str(ROOT)}) as terminal:
        for block in guide:
            if block.section != PROXY:
                terminal.follow(block)
        yield terminal


def contributions(place: Path) -> Counter[str]:
    """How many entries each device has in the library."""
    with Library.open(place / "library.db") as library:
        contributors = Counter(entry.contributor for entry in library.entries())
    return Counter({who: count for who, count in contributors.items() if who.startswith("flower:")})


def test_both_devices_adapt_each_within_its_own_budget(followed, place):
    with Library.open(place / "library.db") as library:
        of_devices = [entry for entry in library.entries() if entry.contributor.startswith("flower:")]
    assert sorted(round(entry.keep_ratio, 1) for entry in of_devices) == [0.3, 0.5]
    for device in ("device1", "device2"):
        assert (place / device / "network.safetensors").stat().st_size > 0
        assert not list((place / device).glob("*.offer"))


def test_only_devices_whose_keys_are_registered_are_in(followed, place):
    nodes = json.loads(followed.follow(Block("flwr supernode ls here --format json")))["nodes"]
    assert {f"flower:{node['node-id']}" for node in nodes} == set(contributions(place))


@pytest.mark.skipif(NGINX is None, reason="there is no nginx here")
def test_through_the_proxy_a_device_adapts_and_nobody_reaches_what_could_run_code(followed, guide, place):
    configure, call, supernode = (block for block in guide if block.section == PROXY)
    (place / "nginx.conf").write_text(AROUND.format(place=place))
    followed.follow(
        replace(configure, commands=configure.commands.replace("listen ", "listen 127.0.0.1:"))
    )
    followed.follow(Block(f"{NGINX} -c {place}/nginx.conf", "nginx", ready="start worker process"))

    answers = followed.follow(call)
    assert answers.startswith("401 fleet")
    assert f"```\n{answers}```\n" in DOCUMENT.read_text()

    before = contributions(place)
    followed.follow(supernode)
    for block in guide:
        if block.section == RUN and "flwr run" in block.commands:
            followed.follow(block)
    assert contributions(place) == before + Counter(before.keys())
