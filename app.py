"""The CDK app: what cdk.json names, and the cdk CLI runs."""

from stacks.__main__ import main

if __name__ == "__main__":
    main()
