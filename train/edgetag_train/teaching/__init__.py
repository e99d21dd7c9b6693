"""An embedding net of our own, taught by a pretrained tagger on mixtures that nobody has labelled."""
