"""Measurements on devices: the inventory, transports, the bundle, and the reports of the agent."""
