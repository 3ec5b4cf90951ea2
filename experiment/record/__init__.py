"""What stands on the disk: a run's config.json, job.json and tables, what they are of, and who may write them."""
