"""Records: a cell is what tells it from others; what was measured is found again, and nothing twice."""

import pytest

from common.errors import InputError
from simulations.records import Cell, Record, append, pending, read_records
from simulations.tasks import TaskChoice
from simulations.way import Way

TASK = TaskChoice("t", (0, 1))


def test_a_way_is_told_by_what_is_not_at_its_default():
    assert Way("L1").to_json() == {"mask": "L1"}
    way = Way("SMSP", keep_ratio=0.25, healing="library")
    assert way.to_json() == {"mask": "SMSP", "keep_ratio": 0.25, "healing": "library"}
    assert Way.from_json(way.to_json()) == way
    assert way.name == "SMSP healed"


def test_a_way_of_an_unknown_field_or_value_is_refused():
    with pytest.raises(InputError, match="neighbors"):
        Way.from_json({"mask": "L1", "neighbors": 3})
    with pytest.raises(InputError, match=r"keep ratio 1\.5"):
        Way("L1", keep_ratio=1.5)
    with pytest.raises(InputError, match="'soup'"):
        Way("L1", healing="soup")


def test_a_run_goes_on_where_its_records_end(tmp_path):
    path = tmp_path / "cells.jsonl"
    cells = [Cell(0, TASK, Way("SMSP")), Cell(0, TASK, Way("L1")), Cell(0, TASK, Way("SMSP"))]
    append(path, Record(0, "t", Way("SMSP"), {"after": 0.5}))
    with path.open("a") as file:
        file.write('{"seed": 0, "task": "t", "wa')  # the power was cut
    assert [record.way.mask for record in read_records(path)] == ["SMSP"]
    assert pending(cells, read_records(path)) == [cells[1]]
    append(path, Record(0, "t", Way("L1"), {"after": 0.4}))
    assert [record.values for record in read_records(path)] == [{"after": 0.5}, {"after": 0.4}]
    assert pending(cells, read_records(path)) == []


def test_a_cell_that_failed_is_tried_again_and_its_last_record_holds(tmp_path):
    path, cell = tmp_path / "cells.jsonl", Cell(3, TASK, Way("L1"))
    append(path, Record(3, "t", Way("L1"), error="RuntimeError: out of memory"))
    assert pending([cell], read_records(path)) == [cell]
    append(path, Record(3, "t", Way("L1"), {"after": 0.4}))
    (record,) = read_records(path)
    assert record.error is None
    assert record.key == cell.key
    assert read_records(tmp_path / "none.jsonl") == []
