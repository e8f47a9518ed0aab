"""The paper's tables and figures again: which cells the data at hand allow, their runs, and our numbers beside its."""
