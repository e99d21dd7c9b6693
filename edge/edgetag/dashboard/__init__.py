"""A network of sensors in a browser, live: `edgetag dashboard`.

```
broker ── subscription ── board ─┬─ /api/snapshot, /api/sensor   JSON, as it is now
                  (a thread)     └─ feed ── /api/events          server-sent events, once a second
static/   one page, its style and its script                     browser
```

The broker's credentials stay here; a browser gets what `board` has read of the messages, and shows it as
text.
"""
