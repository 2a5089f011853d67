"""What is fitted when the network is trained: how sure evidence is, and how much of the mending to keep."""
