"""Network blocks that more than one policy may use."""
