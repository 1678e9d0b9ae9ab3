"""Training side of glocal (PyTorch): the network, its losses, data, fit and evaluate."""
