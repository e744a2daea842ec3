"""Bytes and trees: a session's zip, written, read, merged and unpacked, without a network, a bucket or a URL."""
