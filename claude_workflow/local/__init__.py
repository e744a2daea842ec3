"""The same thing on one machine: the engine, what guards it, the gateway, and a scripted model."""
