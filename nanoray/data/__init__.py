"""Parquet shards to rows of tokens: which token is in which row of which step."""
