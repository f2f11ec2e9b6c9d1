"""`python -m steerlm`: the same as `steerlm`, for launchers such as torchrun that start modules."""

from steerlm.cli.main import main

main()
