"""Measures what a model learnt: items, tree scoring, greedy generation, metrics with intervals."""
