"""From recordings and annotations to labelled log-mel windows."""
