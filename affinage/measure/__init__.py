"""Numbers from arrays: scores, intervals. No torch, no files."""
