"""Generation and serving against what a user would otherwise run; see `benchmarks/README.md`."""
