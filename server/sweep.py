"""Sweep: many models inspected, each in a process of its own that is ended when its time is over."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import timm

from common.errors import InputError, UnsupportedModel
from common.model_names import did_you_mean, timm_name, without_hub

Status = Literal["inspected", "unsupported", "over the limit", "crashed"]
REFUSED = (2, 3)
"""Exit statuses by which `inspect` tells, in a sentence, that it cannot take a model."""


@dataclass(frozen=True)
class Record:
    """What came of one model: `inspection` is what `inspect --json` printed, `error` why it did not.

    `settings` are the words of the command line beside the model; `seconds` are of the whole process.
    """

    model: str
    settings: tuple[str, ...]
    status: Status
    seconds: float
    error: str = ""
    inspection: Mapping[str, Any] | None = None

    def found(self, kind: str) -> int:
        """How many groups of a kind there are."""
        return self.inspection["found"][kind] if self.inspection else 0

    def proved(self, kind: str) -> int:
        """How many of them are proved."""
        return self.inspection["proved"][kind] if self.inspection else 0

    @property
    def attention(self) -> int:
        """Attention modules of several heads."""
        return len(self.inspection["attention"]) if self.inspection else 0

    @property
    def heads_cut(self) -> int:
        """Those of which heads can be cut."""
        return sum(self.inspection["attention"].values()) if self.inspection else 0

    @property
    def internal_right(self) -> bool:
        """Every internal group that was found is proved, and there are some."""
        return 0 < self.found("internal") == self.proved("internal")

    @property
    def heads_right(self) -> bool:
        """That, and heads of every attention module can be cut."""
        return self.internal_right and self.heads_cut == self.attention

    @property
    def all_right(self) -> bool:
        """That, and every residual group is proved."""
        return self.heads_right and self.found("residual") == self.proved("residual")


def models_matching(patterns: Sequence[str]) -> list[str]:
    """timm's models that match any of the patterns (wildcards; commas between several), each once.

    UnsupportedModel for a pattern that matches none, with names near to it.
    """
    models: dict[str, None] = {}
    for pattern in (part.strip() for words in patterns for part in words.split(",")):
        if not pattern:
            continue
        is_name = not set(pattern) & set("*?[")
        matching = [timm_name(pattern)] if is_name else timm.list_models(without_hub(pattern))
        if not matching:
            raise UnsupportedModel(
                f"no model of timm {timm.__version__} matches {pattern!r}; "
                + did_you_mean(without_hub(pattern).replace("*", "").replace("?", ""))
            )
        models.update(dict.fromkeys(matching))
    if not models:
        raise UnsupportedModel("no pattern was given; name models, for example 'resnet*'")
    return list(models)


def read_records(path: Path, settings: Sequence[str]) -> dict[str, Record]:
    """The records of a file by their models; none where there is no file.

    A last line that was not written to its end is cut off. InputError where a line is no record, or
    was made with other settings: results of two kinds would stand in one table.
    """
    if not path.exists():
        return {}
    records = {}
    try:
        text = path.read_text()
        if text and not text.endswith("\n"):
            text = text[: text.rfind("\n") + 1]
            os.truncate(path, len(text.encode()))
        for line in text.splitlines():
            data = json.loads(line)
            record = Record(**{**data, "settings": tuple(data["settings"])})
            if record.settings != tuple(settings):
                raise InputError(
                    f"{path} was made with {' '.join(record.settings) or 'no options'}, not "
                    f"{' '.join(settings) or 'none'}; give the same options, or another file"
                )
            records[record.model] = record
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path} cannot be read ({error}); give another file") from error
    except (ValueError, TypeError, KeyError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{path} holds no records of a sweep; give another file") from error
    return records


def sweep(
    models: Sequence[str],
    settings: Sequence[str] = (),
    *,
    fresh: bool = False,
    jobs: int = 1,
    limit: float = 300.0,
    out: Path | None = None,
    threads: int = 0,
    watch: Callable[[int, int, str], None] | None = None,
) -> list[Record]:
    """A record of every model, in their order; those that `out` holds already are not done again.

    So many `jobs` run at a time, each for at most `limit` seconds and with so many `threads`; 0 is one
    thread where there are several jobs, and else as many as torch likes. Records are appended to `out` as
    they come. `watch` is called with models done, models in all, and the last one. Raises InputError
    where `out` cannot be read or written.
    """
    records = {} if out is None else read_records(out, settings)
    left = [model for model in models if model not in records]
    environment = dict(os.environ)
    if threads or jobs > 1:
        environment["OMP_NUM_THREADS"] = str(threads or 1)
    command = [sys.executable, "-m", "server", "inspect", "--json", *settings]
    command += ["--fresh"] if fresh else []
    running: set[subprocess.Popen] = set()
    if watch is not None:
        watch(len(models) - len(left), len(models), "")
    with ThreadPoolExecutor(jobs) as pool:
        futures = [
            pool.submit(_inspected, model, [*command, "--", model], settings, limit, environment, running)
            for model in left
        ]
        try:
            for future in as_completed(futures):
                record = future.result()
                records[record.model] = record
                if out is not None:
                    _append(out, record)
                if watch is not None:
                    done = sum(model in records for model in models)
                    watch(done, len(models), record.model)
        except BaseException:  # Ctrl-C too: no process is left behind
            pool.shutdown(wait=False, cancel_futures=True)
            for process in list(running):
                process.kill()
            raise
    return [records[model] for model in models]


def _inspected(
    model: str,
    command: Sequence[str],
    settings: Sequence[str],
    limit: float,
    environment: Mapping[str, str],
    running: set[subprocess.Popen],
) -> Record:
    began = time.monotonic()
    process = subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    running.add(process)
    try:
        printed, told = process.communicate(timeout=limit)
    except subprocess.TimeoutExpired:
        process.kill()
        process.communicate()
        error = f"it took longer than {limit:g} seconds"
        return Record(model, tuple(settings), "over the limit", limit, error)
    finally:
        running.discard(process)
    seconds = time.monotonic() - began
    if process.returncode == 0:
        return Record(model, tuple(settings), "inspected", seconds, inspection=json.loads(printed))
    last = (told.strip().splitlines() or [""])[-1].removeprefix("error: ")
    if process.returncode in REFUSED:
        return Record(model, tuple(settings), "unsupported", seconds, last)
    error = f"exit status {process.returncode}: {last}"
    return Record(model, tuple(settings), "crashed", seconds, error)


def _append(path: Path, record: Record) -> None:
    try:
        with path.open("a") as file:
            file.write(json.dumps(asdict(record)) + "\n")
    except OSError as error:
        raise InputError(
            f"{path} cannot be written ({error.strerror or error}); free some space, or write elsewhere"
        ) from error
