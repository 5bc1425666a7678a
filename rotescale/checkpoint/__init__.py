"""Checkpoints: published by manifest, read by byte range at any world size, fenced by attempt."""
