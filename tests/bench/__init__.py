"""Benchmarks: ``python -m tests.bench.NAME --json``. Ratios within one run; absolute figures beside them."""
