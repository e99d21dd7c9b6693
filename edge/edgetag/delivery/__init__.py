"""Where events go: a terminal, a file, a broker. Knows the contract, nothing of the signal.

Each way out is a module of its own, imported by the command that needs it: printing JSON must not
cost the import of an MQTT client.
"""
