"""Text prepared once for many runs: memory-mapped tokens with document boundaries and a manifest.

FOLDER/
  manifest.json                          what is here, written last: a folder without one is not ready
  train-00000.tokens, .documents, ...    tokens laid end to end; where each document starts (int64, little-endian)
  validation-00000.tokens, .documents    held-out documents, in the order of their hashes: a mixture from the start
  tokenizer.json, tokenizer.model        where one was used
  inputs.json                            hashes of the files that were read, by which they are known again
"""
