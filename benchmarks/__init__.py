"""Figures, one command each: `python -m benchmarks.NAME`. No part of the product, and not run by the tests."""
