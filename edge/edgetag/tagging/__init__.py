"""From a window to probabilities: bundle loading, embedding, cascade, and the public `Tagger`."""
