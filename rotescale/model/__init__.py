"""Models and tokenizers: where weights come from, key tokens, building, reading and exporting."""
