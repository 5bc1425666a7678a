"""The launcher: takes an experiment and a place to run it."""
