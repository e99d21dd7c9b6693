"""Pictures of recordings: what was heard in them, drawn for people."""
