"""What runs in AWS: one file for each state, named after it, and the rooms that they work in.

`archive` is bytes and trees, `bucket` holds rights on S3, `agent` holds none and runs strangers' code. None of the
three knows another but `archive`, which knows neither.
"""
