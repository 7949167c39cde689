"""edgedistill: few labels, many pictures and a drawer of models in; a measured int8 student on your device out."""

__version__ = "0.1.0"
