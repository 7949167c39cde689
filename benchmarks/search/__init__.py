"""The search compared with training every student: its regret, and its share of the cost."""
