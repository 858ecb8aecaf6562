"""Plain types and rules of the business. Pure: no I/O, no clock, no environment."""
