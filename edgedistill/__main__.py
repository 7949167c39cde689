"""`python -m edgedistill`, and `torchrun -m edgedistill`: the command line."""

from edgedistill.cli import main

main()
