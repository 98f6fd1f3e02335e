"""Fuzzing of all that reads files: seeds made in code, mutations that know formats, limits on time and memory."""
