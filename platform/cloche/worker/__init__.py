"""The worker process: claims jobs, stages their files, talks to their guests. And the scheduler, which does what happens by itself."""
