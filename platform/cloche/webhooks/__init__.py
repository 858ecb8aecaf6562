"""Signed POSTs to receivers that somebody else chose: to the address that was checked, within bounds, and nowhere else."""
