"""Values in label maps: 0 is background, k is foreground class k - 1, and 255 is no label."""

IGNORE = 255
"""No label: void in ground truth, not reliable in mined regions, not sure in pseudo masks, padding in crops."""
