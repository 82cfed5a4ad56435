"""The blocks, one file each, and what several of them share."""
