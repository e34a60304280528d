"""Checkpoints on disk: a store of the newest ones, the files of each, and the memory they are written from."""
