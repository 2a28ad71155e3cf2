"""What a setting was and what it is now, in words without None."""

import pytest

from common.setting_words import changed_words


@pytest.mark.parametrize(
    ("name", "before", "now", "told"),
    [
        ("keep_ratio", 0.3, 0.1, "keep ratio 0.3, now it is 0.1"),
        ("keep_ratio", None, 0.1, "no keep ratio, now it is 0.1"),
        ("keep_ratio", 0.3, None, "keep ratio 0.3, now there is none"),
        ("seed", 0, 1, "seed 0, now it is 1"),
        ("classes", ["owl", "wren"], ["owl"], "classes owl, wren, now it is owl"),
        ("privacy", "none", "epsilon 8, delta 1e-05", "no privacy, now it is epsilon 8, delta 1e-05"),
        ("public", "", "photographs", "no public images, now it is photographs"),
        ("arguments", {"in_chans": 1}, {}, "arguments in_chans=1, now there is none"),
        ("tasks_a_seed", 4, 20, "tasks a seed 4, now it is 20"),
    ],
)
def test_a_change_is_told_in_words(name, before, now, told):
    assert changed_words(name, before, now) == told
