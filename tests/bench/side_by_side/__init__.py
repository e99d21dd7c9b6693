"""edgetag beside what people run today, in one run on one machine: `make bench`.

```
                     ┌ edgetag_side   bundle, variant     the sensor's own code, timed where it runs
street ── windows ───┼ paper_side     nets, VGGish        librosa, PyTorch in float32
          in turns   └ yamnet_side    yamnet.tflite       LiteRT
```

Every side is a process of its own, with one thread, that lives as long as the measurement and hears windows
when it is told to (`serving`, `sides`). They take turns, so that what slows the machine down for a while
slows all of them down: of all turns the median counts, and a ratio is the median of the turns' ratios.
"""
