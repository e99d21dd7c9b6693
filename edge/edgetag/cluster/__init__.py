"""Archives that one machine cannot chew: recordings spread over the workers of a Dask cluster.

```
client     walks the archive ── batches ──> scheduler ──> worker   hears each recording, writes its events
           failed.jsonl, progress <── counts and failures ──┘
```

Workers read recordings and write events where the client sees them, too: on a file system that all share.
What a run is, and where its events lie, is in `run`; `worker` is what workers do; `client` spreads.
"""
