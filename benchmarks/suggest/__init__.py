"""Suggested labels against random ones: the teacher of each, the distilled student, and the cost of many rows."""
