"""Figures that papers report, as data: they enter tables only in rows marked `reported`."""
