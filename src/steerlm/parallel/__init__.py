"""Training over several processes: ranks, balanced packs, sharding, streamed loading, export without gathering."""
