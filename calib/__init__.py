"""INT8 that can be trusted: activation ranges, Q/DQ graphs, accuracy gate, sensitivity scan."""
