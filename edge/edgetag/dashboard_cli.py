"""`edgetag dashboard`: a network of sensors in a browser."""
