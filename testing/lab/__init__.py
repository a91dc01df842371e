"""The common frame of all experiments: what is measured, in which order, and what is kept of it.

A script names its measurements, its tables and its plots in one `Experiment`, and ends with

    EXPERIMENT = Experiment(name="decoder_methods", description=__doc__, plan=..., tables=..., ...)

    def main(arguments: Sequence[str] | None = None) -> int:
        return run(EXPERIMENT, arguments)

- `plan(settings)` gives the `Measurement`s. A measurement is a row of the record: `labels` say
  what it is, and together are its key; `subject` is what has to be loaded for it; `task` is what
  the loaded subject is asked to do in each trial. Measurements with the same subject share it.
- A `Subject` is a frozen dataclass whose `open()` is a context manager giving a `Loaded`: facts
  about it, and `run(task, number)`, a trial, which returns its figures by name (seconds,
  tokens_per_s ...). A text that it returns is kept of the first trial, as a sample. The model
  subjects are in `models.py`. With `apart = True` a subject lives in a process of its own, so that
  its memory and its threads are its own; it and its tasks must be picklable.
- What cannot be measured raises an EngineError, and becomes a row that says why (`missing`).
- `tables(record)` gives what rich prints; `draw(record, folder)` writes plots and returns their
  paths, OUT/NAME*.png. `tables.py` and `plots.py` have the usual ones.

`run` adds the options --model --runs --threads --quick --out, shows a progress bar, lets all
subjects that fit into memory together take their turns in a shuffled order after a warm-up, and
writes OUT/NAME.json atomically after every trial. Ctrl+C keeps what was measured; the same command
goes on from there. The exit status is 0, 2 for bad input or a record of other settings, 130 after
Ctrl+C. The record:

    {"experiment": NAME, "machine": {...}, "versions": {...}, "time": "...", "settings": {...},
     "rows": [{"key", "labels", "facts", "trials", "summary", "texts", "finished", "missing"}],
     "plots": ["NAME.png"]}

`facts["weights"]` is "random" where a size that is not on this disk ran with random weights of the
true shape; such rows have no figures of quality. `summary` has for each figure of the trials
{"median", "q1", "q3", "low", "high", "n"}: quartiles, and the 95 % bootstrap interval of the
median.
"""

from testing.lab.experiment import Experiment, Settings, run
from testing.lab.measurement import Loaded, Measurement, Subject
from testing.lab.record import Record, Row

__all__ = ["Experiment", "Loaded", "Measurement", "Record", "Row", "Settings", "Subject", "run"]
