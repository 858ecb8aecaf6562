"""Counting what fails, and how long whoever fails has to wait: in Redis for all processes, or in memory for one."""
