"""What a compiler made of a graph: its kernels, read from what is on the disk; nothing is run."""
