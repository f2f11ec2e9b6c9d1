"""Our training on conversation trees against what an engineer would otherwise use on the same data.

python -m benchmarks.training --help
"""
