"""A street without a street: a scene to hear and a broker to tell, for `edgetag demo`."""
