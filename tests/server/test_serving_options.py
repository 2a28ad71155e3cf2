"""Options that commands share which elect masks: the words of a command line are its voting settings."""

import click
import pytest
from click.testing import CliRunner

from common.errors import InputError
from server.exchange_cli import assign
from server.heal_cli import heal
from server.serve_cli import serve
from server.serving_options import voting_options
from server.settings import HEAL_VOTING, VotingSettings

WORDS = {"--neighbours": "3", "--explore": "0.25", "--prior": "7"}


SERVED = VotingSettings()


def given(*words: str, default: VotingSettings = SERVED) -> VotingSettings:
    found = []

    @click.command()
    @voting_options(default)
    @click.option("--other")
    def command(voting, other):
        found.append(voting)

    CliRunner().invoke(command, words, catch_exceptions=False)
    return found[0]


def test_every_word_is_a_setting_and_the_rest_are_the_commands_defaults():
    assert given() == SERVED
    assert given(default=VotingSettings(2, 0.3, prior=9.0)) == VotingSettings(2, 0.3, prior=9.0)
    words = [part for pair in WORDS.items() for part in pair]
    assert given(*words) == VotingSettings(3, 0.25, prior=7.0)
    assert given("--prior", "0") == VotingSettings(prior=0.0)


def test_what_elects_nothing_is_refused_with_its_rule():
    with pytest.raises(InputError, match=r"the prior is -1\.0; it is a number from 0"):
        given("--prior", "-1")


@pytest.mark.parametrize(("command", "default"), [(serve, SERVED), (assign, SERVED), (heal, HEAL_VOTING)])
def test_whatever_elects_has_them_all_with_its_own_defaults(command, default):
    options = {option.opts[0]: option.default for option in command.params}
    assert {word: options[word] for word in WORDS} == {
        "--neighbours": default.neighbours,
        "--explore": default.explore,
        "--prior": default.prior,
    }
