"""The offline trainer: recordings and annotations in, a bundle out. Runs on a workstation, never on a sensor."""
