"""The network of the paper, in forward order: config, layers, wavelet, router, experts, frequency, cues, traces,
deblur, pooled, model, checkpoint."""
