"""Export side of glocal: from a checkpoint to a verified bundle."""
