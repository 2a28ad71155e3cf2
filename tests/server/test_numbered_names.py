"""Patterns stand for exactly the names that they were made of, as a shell would expand them."""

import random
import subprocess

import pytest

from server.numbered_names import braced


@pytest.mark.parametrize(
    ("names", "patterns"),
    [
        ([], []),
        (["fc.weight:0"], ["fc.weight:0"]),
        ([f"blocks.{i}.mlp.fc1.weight:0" for i in range(12)], ["blocks.{0..11}.mlp.fc1.weight:0"]),
        (["blocks.0.a", "blocks.1.a"], ["blocks.{0,1}.a"]),
        (["conv1.weight:0", "conv1.weight:1"], ["conv1.weight:0", "conv1.weight:1"]),
        (["b.0.x", "b.1.x", "b.2.x", "b.5.x"], ["b.{{0..2},5}.x"]),
        (["a.0.x", "b.1.x"], ["a.0.x", "b.1.x"]),
        (["a.01.x", "a.2.x"], ["a.01.x", "a.2.x"]),
        (
            [f"layers.{i}.blocks.{j}.qkv" for i in range(4) for j in range(6 if i == 2 else 2)],
            ["layers.{0,1,3}.blocks.{0,1}.qkv", "layers.2.blocks.{0..5}.qkv"],
        ),
    ],
)
def test_names_that_differ_in_numbers_are_one_pattern(names, patterns):
    assert list(braced(names)) == patterns


def test_every_name_is_in_one_pattern_and_a_shell_expands_it_to_those():
    generator = random.Random(0)
    for _ in range(20):
        names = {
            f"s{generator.randrange(3)}.b.{generator.randrange(9)}.conv{generator.randrange(4)}.weight:0"
            for _ in range(25)
        }
        patterns = braced(names)
        assert sorted(name for members in patterns.values() for name in members) == sorted(names)
        words = " ".join(patterns)
        expanded = subprocess.run(["bash", "-c", f"echo {words}"], capture_output=True, text=True)
        assert sorted(expanded.stdout.split()) == sorted(names)
