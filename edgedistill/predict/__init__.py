"""Labels of pictures by an exported student; torch is not needed."""
