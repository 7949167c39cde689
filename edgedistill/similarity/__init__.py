"""Similarity scores of the sources on the target's labels, and the source weights."""

import sys

from edgedistill import CallablePackage

sys.modules[__name__].__class__ = CallablePackage
