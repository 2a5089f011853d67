"""What a routed network's routing becomes in a graph of one input: decided from the tile that is shown, of families
that were named beforehand, or constants.

Belongs here: graphs joined or fed with constants. Not here: how tiles share a routing outside of a graph
(``clusir.runtimes.restore.routing``).
"""
