"""The run directory: its files, how they are read and written, and what it ran on."""

import sys

from edgedistill import CallablePackage

sys.modules[__name__].__class__ = CallablePackage
