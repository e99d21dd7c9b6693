"""The offline trainer: recordings and annotations in, a bundle out. It never runs on a sensor."""
