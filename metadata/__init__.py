"""What each block of each version of a vdisk is, and where it lies."""
