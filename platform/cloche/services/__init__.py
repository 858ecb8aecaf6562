"""What Cloche does, in terms of its own: each service is one concern, built from stores it is given."""
