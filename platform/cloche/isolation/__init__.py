"""The sandbox as the worker sees it: a protocol, a pure spec, the client of sandboxd, a scripted backend for tests."""
