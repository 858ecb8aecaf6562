"""The REST API and what it stands on: routes that declare what they take, give and require."""
