"""Tasks of the lm-evaluation-harness, asked of the model that a run trains."""
