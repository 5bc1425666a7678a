"""Engines: one optimizer step on any model, sharded (zero3) or whole (eager)."""
