"""What is fitted when the network is trained: how sure evidence is, how bright a picture was, and how
much of the mending to keep.

Belongs here: heads that judge pictures, and the pictures to judge by. Not here: what trains the network itself.
"""
