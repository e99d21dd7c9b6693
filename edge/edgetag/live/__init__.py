"""What a person at a sensor's terminal sees while it hears."""
