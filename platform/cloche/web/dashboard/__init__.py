"""The pages people use in a browser."""
