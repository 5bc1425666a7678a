"""Planning: arithmetic over a spec before anything starts. No torch."""
