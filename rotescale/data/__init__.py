"""From facts to packed rows of tokens, in an order that no cluster size can change. No torch."""
