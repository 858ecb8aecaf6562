"""The one root process of a host: owns the container engine, user ids, mounts and cgroups, behind a narrow API on a Unix socket."""
