#!/bin/sh
# Lambda gives what starts its own runtime, the Python first: that one starts ours instead.
cd "$LAMBDA_TASK_ROOT" && PYTHONPATH="$LAMBDA_TASK_ROOT${PYTHONPATH:+:$PYTHONPATH}" exec "$1" -m lambdas.streaming
