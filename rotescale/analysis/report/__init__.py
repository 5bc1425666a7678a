"""One page of what a run or a study measured: figures, tables, and what was not measured."""
