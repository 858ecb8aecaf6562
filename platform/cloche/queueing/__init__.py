"""Order and wake-up of ready jobs: an index that can be rebuilt from the database at any time."""
