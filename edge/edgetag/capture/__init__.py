"""From a microphone, a file or a pipe to windows of 44.1 kHz mono. Imports the contract and dsp."""
