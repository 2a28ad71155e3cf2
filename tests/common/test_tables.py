"""Tables are never narrower than their content, whatever the terminal and its characters."""

import io
import sys
from functools import partial

import pytest
from pseudo_terminal import narrow, printed_in_terminal

from common.tables import folded, printable, show

ID = "d41a5191b245adae233d2f863e5edb95"
ENTRY = ["entry", "by", "parameters", "kept", "before", "after", "iterations", "removed"]
ROWS = [
    [ID, "flower:16582484620423102582", "1,291,146", "10.0%", "31.2%", "66.0%", "100", None],
    ["2869b22f65d7", "operator:first", "129,061", "29.9%", "100.0%", "100.0%", "1,000", "2031-02-03"],
]


def test_a_table_that_fits_is_a_table(capsys):
    printed = printed_in_terminal(80, partial(show, "Devices", ["name", "units"], [["a", "1"]]))
    show("Devices", ["name", "units"], [["a", "1"]])
    assert printed == capsys.readouterr().out
    assert "│ a    │     1 │" in printed


def test_a_table_that_does_not_fit_has_a_record_for_each_row():
    printed = narrow(partial(show, "Entries", ENTRY, ROWS))
    assert printed.splitlines()[:10] == [
        "Entries",
        f"entry       {ID}",
        "by          flower:16582484620423102582",
        "parameters  1,291,146",
        "kept        10.0%",
        "before      31.2%",
        "after       66.0%",
        "iterations  100",
        "removed",
        "",
    ]


def test_words_of_the_widest_column_wrap_before_rows_become_records():
    rows = [["head", "it is the network's output, and its units are the classes of the task " * 2]]
    printed = narrow(partial(show, "Never cut", ["weight", "why"], rows))
    assert "┃ weight ┃ why " in printed
    assert max(map(len, printed.splitlines())) == 80


def test_a_table_of_fields_and_values_stays_one_list():
    path = "/".join(["photographs"] * 9)
    rows = [["network", path], ["neighbours", "2 tasks voted"], ["left out", ""]]
    printed = narrow(partial(show, "Request", ["", ""], rows))
    assert printed.splitlines() == [
        "Request",
        f"network     {path}",
        "neighbours  2 tasks voted",
        "left out",
    ]


@pytest.mark.parametrize("columns", [20, 40, 80, 132, 300])
def test_no_width_cuts_a_value_an_id_a_title_or_a_caption(columns):
    printed = printed_in_terminal(columns, partial(show, f"a title of {ID}", ENTRY, ROWS, f"by {ID * 3}"))
    words = printed.split()
    assert words.count(ID) == 2
    assert ID * 3 in words
    assert {cell for row in ROWS for cell in row if cell} <= set(words)


def test_without_a_terminal_nothing_wraps_whatever_the_width(capsys):
    why = "because " * 100
    show(f"title {why}", ["name", "why"], [["a", why]], f"caption {why}")
    assert len(capsys.readouterr().out.splitlines()) == 7


def test_a_terminal_that_does_not_tell_its_width_has_80_columns():
    printed = printed_in_terminal(0, partial(show, "Entries", ENTRY, ROWS))
    assert "parameters  1,291,146" in printed


def test_wide_characters_take_two_columns():
    rows = [["犬" * 20, "猫" * 20]]
    assert "│" in printed_in_terminal(90, partial(show, "", ["one", "other"], rows))
    assert "│" not in printed_in_terminal(80, partial(show, "", ["one", "other"], rows))


def test_what_is_no_markup_and_no_order_to_a_terminal_is_shown_as_it_is(capsys):
    show("[bold]", ["[red]"], [["[/] \x1b[31m \udcff"]], "[dim]")
    out = capsys.readouterr().out
    assert all(text in out for text in ("[bold]", "[red]", r"[/] \x1b[31m \udcff", "[dim]"))


@pytest.mark.parametrize(("encoding", "shown"), [("latin-1", r"é\u72ac"), ("ascii", r"\xe9\u72ac")])
def test_a_table_keeps_its_columns_in_every_encoding(monkeypatch, encoding, shown):
    stdout = io.TextIOWrapper(io.BytesIO(), encoding=encoding, write_through=True)
    monkeypatch.setattr(sys, "stdout", stdout)
    show("é犬", ["class", "犬"], [["é犬", "1"], ["plain", "22"]], "犬")
    lines = stdout.buffer.getvalue().decode(encoding).splitlines()
    assert lines[0] == shown
    assert {len(line) for line in lines[1:-1]} == {len(lines[1])}
    assert any(shown in line for line in lines[2:])


def test_lines_break_between_words_only():
    assert folded("one two three", 8) == ["one two", "three"]
    assert folded(f"an {ID}\nend", 8) == ["an", ID, "end"]
    assert folded("one two", None) == ["one two"]
    assert folded("", 8) == [""]


def test_lines_of_a_text_stay_lines(capsys):
    assert printable("a\nb\tc") == "a\nb\\tc"
