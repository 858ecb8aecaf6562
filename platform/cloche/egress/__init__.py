"""The outbound proxy of jobs: a process of its own, without privilege, that speaks HTTP CONNECT on one socket per sandbox."""
