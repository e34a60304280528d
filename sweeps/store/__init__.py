"""The folder of a sweep: its ledger, snapshots of it, and the lease of the one process that writes."""
