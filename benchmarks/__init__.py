"""Measures the models, the service and its peers on this machine. `python -m benchmarks --help`."""
