"""Federated learning on Flower: the app, its command line and its run files."""

# The version of this code, wherever it runs: a node runs the bundle it was sent, not the package installed there.
__version__ = "0.1.0"
