"""Where a run's records go besides `record.jsonl`."""
