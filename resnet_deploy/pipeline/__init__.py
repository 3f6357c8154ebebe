"""The order of stages: what each command of the command line, and the demo, does from beginning to end."""
