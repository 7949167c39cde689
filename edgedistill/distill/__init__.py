"""Training a student: methods, teachers, batches, and the loop."""
