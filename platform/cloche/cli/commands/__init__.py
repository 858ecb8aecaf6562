"""One module per noun. Each is imported only when its command runs, so that ``cloche --help`` stays fast."""
