"""A study: one experiment varied along axes, as a graph of runs."""
