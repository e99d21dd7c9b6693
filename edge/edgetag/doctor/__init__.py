"""`edgetag doctor`: what a sensor needs, each with what to do where it is missing."""
