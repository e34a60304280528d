"""Plans, submits, watches and resubmits many runs under quotas. Never imports torch."""
