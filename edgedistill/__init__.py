"""edgedistill: distills pretrained models into a small int8 student from few labels and many unlabeled images."""

__version__ = "0.1.0"
