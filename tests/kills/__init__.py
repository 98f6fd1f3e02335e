"""Kills a small but complete workflow again and again, and compares what comes out with an undisturbed run."""
