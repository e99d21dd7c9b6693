"""Signal processing on windows: log-mel front ends, resampling, level. Imports the contract only."""
