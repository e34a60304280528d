"""The data that a run is trained on: a corpus, its batches, and text prepared once for many runs."""
