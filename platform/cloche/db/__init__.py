"""The database: truth. Tables, the engine with its single SQLite writer, guarded updates."""
