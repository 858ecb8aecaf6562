"""Files in and out: the artifact store, remotes through rclone, a job's working folders."""
